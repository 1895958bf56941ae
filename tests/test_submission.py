"""A bad request is one clear error, says what, where and how to fix it, and leaves nothing behind. Real store, real files."""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROWS, Workplace, free_port, wait_for, write_rows

from mlflow_finetune_plugin.backend import FinetuneRun
from mlflow_finetune_plugin.doctor import adopt_orphans, remove_old_folders
from mlflow_finetune_plugin.errors import FinetuneError
from mlflow_finetune_plugin.jobs import JobFolder
from mlflow_finetune_plugin.submission import Submission, SubmittedJob, submit
from mlflow_finetune_plugin.tracking import reap_expired

DATA = {"data": "train.jsonl"}


@pytest.fixture
def ask(desk: Workplace) -> Callable[..., SubmittedJob]:
    def ask(parameters: dict[str, str] | None = None, **more: object) -> SubmittedJob:
        request = {
            "project_uri": ".",
            "entry_point": "lora",
            "parameters": DATA if parameters is None else parameters,
            "version": None,
            "backend_config": {},
            "tracking_uri": desk.tracking_uri,
            "experiment_id": "0",
            **more,
        }
        return submit(Submission(**request))  # type: ignore[arg-type]

    return ask


@pytest.fixture
def refused(desk: Workplace, ask: Callable[..., SubmittedJob]) -> Callable[..., str]:
    """The message of a refusal, after making sure that it left no run and no job folder."""

    def refused(parameters: dict[str, str] | None = None, **more: object) -> str:
        with pytest.raises(FinetuneError) as caught:
            ask(parameters, **more)
        assert_nothing_left(desk)
        return str(caught.value)

    return refused


def assert_nothing_left(desk: Workplace) -> None:
    client = desk.client()
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert runs == []
    assert not list((desk.home / "jobs").glob("*"))


def assert_tells(message: str, *parts: str) -> None:
    for part in parts:
        assert part in message, (part, message)
    assert len(message) < 2500


# entry point, parameters, backend config --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        ({"entry_point": "lorra"}, ["no entry point 'lorra'", "did you mean lora?", "pick one of: lora"]),
        ({"entry_point": "main"}, ["no entry point given", "add -e with one of: lora"]),
        ({"entry_point": "x" * 5000}, ["no entry point 'xxx", "pick one of"]),
        ({"backend_config": {"ENV_MANAGER": "virtualenv"}}, ["--env-manager virtualenv", "whose torch", "local"]),
        ({"backend_config": {"ENV_MANAGER": "conda"}}, ["--env-manager conda", "fix: --env-manager local"]),
        ({"backend_config": {"ENV_MANAGER": "uv"}}, ["--env-manager uv", "fix: --env-manager local"]),
        ({"backend_config": {"lancher": "local"}}, ["-c lancher = 'local'", "known: launcher, detach"]),
        ({"backend_config": {"launcher": "slurm"}}, ["no launcher 'slurm'", "pick one of: local"]),
        ({"backend_config": {"rank": 8}}, ["-c rank = 8", "hyperparameters go to -P"]),
        ({"backend_config": {"detach": "yes"}}, ["-c detach = 'yes'", "expected true or false"]),
    ],
)
def test_unknown_entry_point_or_backend_config_is_refused(refused, more, parts):
    assert_tells(refused(**more), *parts)


@pytest.mark.parametrize(
    ("parameters", "parts"),
    [
        ({"rnk": "3"}, ["-P rnk: unknown key rnk (= 3)", "did you mean rank?"]),
        ({"rank": "big"}, ["-P rank: options.rank = 'big'", "expected integer at least 1 or auto"]),
        ({"rank": "1\n2"}, ["options.rank = '1 2'", "expected integer at least 1 or auto"]),
        ({"rank": "9" * 100_000}, ["options.rank = '999", "(100,002 characters)"]),
        ({"rank": "!!int abc"}, ["options.rank = '!!int abc'"]),
        ({"rank": ""}, ["options.rank = None", "expected integer at least 1 or auto"]),
        ({"k" * 9000: "1"}, ["-P kkk", "unknown key kkk"]),
        ({"learning_rate": "-1"}, ["training.learning_rate = -1", "above 0"]),
        ({"training": "3"}, ["-P training: unknown key training"]),
        ({"rank": "8", "options.rank": "16"}, ["-P options.rank: sets options.rank, as does -P rank"]),
        ({"adaptation": "lorra"}, ["no adaptation 'lorra'", "did you mean lora?"]),
        ({"metrics": "exact_mtch"}, ["no metric 'exact_mtch'", "did you mean 'exact_match'?"]),
        ({"register": "a/b"}, ["register.name = 'a/b'", "may not contain '/'"]),
        ({"register": "a#b"}, ["register.name = 'a#b'", "may not contain '#'"]),
        ({"learning_rate": ".inf"}, ["training.learning_rate = inf", "expected number above 0"]),
        ({"learning_rate": "1e999"}, ["training.learning_rate = inf", "expected number above 0"]),
        ({"seed": str(2**32)}, ["training.seed = 4294967296", "below 4294967296"]),
        (
            {"data": "[train.jsonl, 3]"},
            ["data.train.1 = 3", "expected a path or {path, task, weight, instruction, layout, columns}"],
        ),
        ({"register": "base"}, ["register.name = 'base'", "reserved"]),
        ({"max_length": "100000"}, ["training.max_length = 100000", "positions", "fix: at most"]),
        ({"base_model": "embedded", "revision": "main"}, ["base_model.revision = 'main'", "has no revisions"]),
    ],
)
def test_wrong_parameter_is_refused(refused, parameters, parts):
    assert_tells(refused({**DATA, **parameters}), *parts)


def test_every_fault_comes_in_one_message(refused):
    message = refused({"data": "trian.jsonl", "base_model": "./nope", "forgetting": "nope.txt", "chat_template": "."})
    assert_tells(message, "4 problems", "trian.jsonl", "./nope".lstrip("./"), "nope.txt: no such file", "is a folder")


@pytest.mark.parametrize("name", ["2024", "7e12", "0123", "true", "2024-01-31"])
def test_text_that_looks_like_a_number_stays_text(desk, ask, name):
    from mlflow_finetune_plugin.config import load_config

    config = load_config(desk.path, "lora", {**DATA, "register": name, "revision": name}, caller=desk.path)
    assert (config.register_as.name, config.base_model.revision) == (name, name)


# files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("trian.jsonl", ["trian.jsonl: no such file", "did you mean", "train.jsonl?"]),
        ("nowhere/train.jsonl", ["no such file", "does not exist either"]),
        ("folder.jsonl", ["folder.jsonl: is a directory", "holds no files"]),
        ("dangling.jsonl", ["dangling.jsonl: no such file"]),
        ("empty.jsonl", ["empty.jsonl: is empty"]),
        ("binary.jsonl", ["binary.jsonl: holds binary content"]),
        ("half.jsonl", ["half.jsonl, line 3: the last line looks cut off"]),
        ("short.jsonl.gz", ["short.jsonl.gz: the gzip data ends too early"]),
        ("false.jsonl.gz", ["false.jsonl.gz: is not a sound gzip file"]),
        ("odd.jsonl", ["odd.jsonl: cannot tell the layout from the columns a, b", "data.columns"]),
        ("data.bin", ["cannot tell the format from the name", ".jsonl"]),
        ("s3://bucket/train.jsonl", ["'s3://bucket/train.jsonl': is a URL", "fix: download it"]),
        ("https://host/train.jsonl", ["'https://host/train.jsonl': is a URL", "fix: download it"]),
        ("x" * 5000, ["cannot be a file name"]),
        ("a\0b", ["cannot be a file name"]),
    ],
)
@pytest.mark.parametrize("key", ["data", "eval_data"])
def test_unusable_data_file_is_refused(desk, refused, key, path, parts):
    folder = desk.path
    (folder / "folder.jsonl").mkdir()
    (folder / "dangling.jsonl").symlink_to("nowhere")
    (folder / "empty.jsonl").write_text("")
    (folder / "binary.jsonl").write_bytes(bytes(range(256)) * 20)
    (folder / "half.jsonl").write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[1]) + '\n{"prompt": "ca')
    (folder / "short.jsonl.gz").write_bytes(gzip.compress(os.urandom(4000).hex().encode())[:-100])
    (folder / "false.jsonl.gz").write_text("no gzip")
    write_rows(folder / "odd.jsonl", [{"a": 1, "b": 2}])
    (folder / "data.bin").write_text("x")
    message = refused({**DATA, key: path})
    assert_tells(message, "1 problem", *parts)


@pytest.mark.parametrize(
    ("key", "parts"),
    [("metrics", ["eval.metrics"]), ("chat_template", ["data.chat_template"]), ("forgetting", ["eval.forgetting"])],
)
@pytest.mark.parametrize(
    ("name", "fault"),
    [("none.py", "no such file"), ("folder.py", "is a folder"), ("empty.py", "is empty"), ("latin.py", "not UTF-8")],
)
def test_unusable_side_file_is_refused(desk, refused, key, parts, name, fault):
    (desk.path / "folder.py").mkdir()
    (desk.path / "empty.py").write_text(" \n")
    (desk.path / "latin.py").write_bytes("# Größe".encode("latin-1"))
    assert_tells(refused({**DATA, key: name}), *parts, name, fault)


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda path: path.mkdir(), ["finetune.yaml: cannot be read: Is a directory"]),
        (lambda path: path.symlink_to("nowhere"), ["finetune.yaml: cannot be read: No such file"]),
        (lambda path: path.write_text("data: [a"), ["finetune.yaml:1: not valid YAML"]),
        (lambda path: path.write_bytes(b"data: \xff"), ["finetune.yaml: not UTF-8"]),
        (lambda path: path.write_text("data: &a [*a]"), ["an anchor (&name) holds itself"]),
        (lambda path: path.write_text("training: 3"), ["finetune.yaml:1: training = 3", "expected keys such as"]),
        (
            lambda path: path.with_suffix(".yml").write_text("data: x"),
            ["no training data", "rename it to finetune.yaml"],
        ),
    ],
)
def test_unusable_recipe_is_refused(desk, refused, make, parts):
    make(desk.path / "finetune.yaml")
    assert_tells(refused({}), *parts)


def test_missing_extra_is_named(desk):
    """In a process of its own where ``peft`` cannot be found, as on a machine that never installed it."""
    code = """
import importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "peft" else found(name, package)
from mlflow_finetune_plugin.cli import main
sys.exit(main(["run", ".", "-e", "lora", "-P", "data=train.jsonl"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=desk.path, env=desk.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "training needs peft; fix: pip install 'mlflow-finetune[train]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert_nothing_left(desk)


# tracking ---------------------------------------------------------------------------------------------------------


def test_experiment_that_is_deleted_or_unknown_is_refused_within_seconds(desk, refused):
    client = desk.client()
    gone = client.create_experiment("gone")
    client.delete_experiment(gone)
    started = time.monotonic()
    assert_tells(refused(experiment_id=gone), "tracking server", "active")
    assert_tells(refused(experiment_id="77"), "tracking server", "77")
    assert time.monotonic() - started < 10
    assert [process for process in children() if "mlflow_finetune_plugin" in process] == []


@pytest.mark.parametrize(
    "uri",
    [
        "foo://bar",
        "sqlite:////proc/nope/mlflow.db",
        "sqlite:///train.jsonl",
        "http://user:secret@127.0.0.1:{port}",
        "sqlite://",
    ],
)
def test_unusable_tracking_store_is_one_error_without_secrets(refused, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    message = refused(tracking_uri=uri.format(port=free_port()))
    assert_tells(message, "tracking ")
    assert "secret" not in message


def test_run_that_cannot_be_handed_over_does_not_stay_running(desk, ask, own_project, monkeypatch):
    """The disk is full just after the run was created: the folder refuses the file that would name it."""
    real = JobFolder.write

    def full(self: JobFolder, name: str, value: dict[str, object]) -> None:
        if name == "run":
            raise OSError(28, "No space left on device", str(self.path / "run.json"))
        real(self, name, value)

    monkeypatch.setattr(JobFolder, "write", full)
    for project, entry in ((".", "lora"), (str(own_project("true")), "main")):
        with pytest.raises(FinetuneError, match=r"run\.json: No space left on device"):
            ask(DATA if entry == "lora" else {}, project_uri=project, entry_point=entry)
    runs = desk.client().search_runs(["0"])
    assert [run.info.status for run in runs] == ["FAILED", "FAILED"]
    assert all("No space left" in run.data.tags["finetune.status_reason"] for run in runs)
    assert not list((desk.home / "jobs").glob("*"))
    assert [process for process in children() if "mlflow_finetune_plugin" in process] == []


def test_parameter_name_that_mlflow_refuses_costs_no_run(refused, own_project):
    message = refused({"a$b": "1"}, project_uri=str(own_project("true")), entry_point="main")
    assert_tells(message, "-P a$b", "MLflow takes no parameter of this name")


def test_job_home_that_cannot_be_written_is_told(desk, ask, monkeypatch):
    monkeypatch.setenv("MLFLOW_FINETUNE_HOME", str(desk.path / "train.jsonl"))
    with pytest.raises(FinetuneError, match="set MLFLOW_FINETUNE_HOME to a folder"):
        ask()
    assert desk.client().search_runs(["0"]) == []


def test_relative_store_means_the_callers_in_every_process(desk, ask, own_project):
    job = ask({}, project_uri=str(own_project("true")), entry_point="main", tracking_uri="sqlite:///mlflow.db")
    assert job.tracking_uri == f"sqlite:///{desk.path}/mlflow.db"
    assert FinetuneRun(job.run_id, job.folder, job.tracking_uri).wait()
    assert desk.client().get_run(job.run_id).info.status == "FINISHED"
    assert not (desk.path / "own" / "mlflow.db").exists()


# what only the worker can find: the run ends FAILED with the reason -------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "parts"),
    [
        ({"data": "blank.jsonl"}, ["blank.jsonl"]),
        ({"data": "train.jsonl", "rank": "4096"}, ["options.rank = 4096", "must be at most"]),
        ({"data": "train.jsonl", "target_modules": "[nothing]"}, ["options.target_modules", "matches no layer"]),
        ({"data": "long.jsonl"}, ["long.jsonl", "max_length"]),
    ],
    ids=["no usable row", "rank", "target_modules", "overlength"],
)
def test_what_the_worker_finds_fails_the_run_with_the_reason(desk, ask, parameters, parts):
    write_rows(desk.path / "blank.jsonl", [{**row, "completion": ""} for row in ROWS])
    write_rows(desk.path / "long.jsonl", [*ROWS, {"prompt": "word " * 3000, "completion": "x"}])
    job = ask({"base_model": "embedded", **parameters})
    run = FinetuneRun(job.run_id, job.folder, job.tracking_uri)
    assert run.wait() is False
    found = desk.client().get_run(job.run_id)
    assert found.info.status == "FAILED"
    assert_tells(found.data.tags["finetune.status_reason"], *parts)
    reports = [file.path for file in desk.client().list_artifacts(job.run_id, "finetune")]
    assert ("finetune/data_report.html" in reports) == (parameters["data"] != "train.jsonl")


# the whole command --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["-e", "lora", "-P", "data=train.jsonl", "-P", "rnk=3"], "did you mean rank?"),
        (["-e", "lora", "-P", "data=train.jsonl", "-P", "base_model=no/such-model"], "no/such-model"),
        (["-e", "lora", "-P", "data=train.jsonl", "--env-manager", "uv"], "fix: --env-manager local"),
    ],
)
def test_refused_command_is_one_message_and_exit_code_1(desk, arguments, hint):
    result = desk.mlflow_run(".", *arguments)
    assert result.returncode == 1
    assert hint in result.stdout
    assert "Traceback" not in result.stdout
    assert len(re.findall(r" ERROR mlflow", result.stdout)) == 1
    assert_nothing_left(desk)


@pytest.mark.parametrize("detached", [False, True], ids=["refused", "detached"])
def test_parent_never_imports_the_heavy_packages(desk, own_project, detached):
    own_project("true")
    good, bad = ["own", "-c", '{"detach": true}'], [".", "-e", "lora", "-P", "data=train.jsonl", "-P", "rnk=3"]
    code = f"""
import sys
from mlflow.cli import cli
try:
    cli(["run", "-b", "finetune", *{good if detached else bad!r}], prog_name="mlflow")
finally:
    heavy = {{"torch", "transformers", "peft", "trl", "datasets", "evaluate", "gradio", "vllm"}} & set(sys.modules)
    print("HEAVY", sorted(heavy), flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=desk.path, env=desk.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == (0 if detached else 1), done.stderr
    assert "HEAVY []" in done.stdout
    if detached:
        assert desk.ended_run().info.status == "FINISHED"


def test_two_runs_at_once_do_not_disturb_each_other(desk, own_project):
    project = str(own_project("echo {word}; sleep 1"))
    (Path(project) / "MLproject").write_text(
        "entry_points: {main: {parameters: {word: string}, command: 'echo {word}; sleep 1'}}"
    )
    both = [desk.start_mlflow_run(project, "-P", f"word={word}") for word in ("one", "two")]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    runs = desk.client().search_runs(["0"])
    assert sorted(run.data.params["word"] for run in runs) == ["one", "two"]
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_run_id_left_in_the_environment_is_not_taken_over(desk, own_project):
    other = desk.client().create_run("0")
    result = desk.mlflow_run(str(own_project("true")), MLFLOW_RUN_ID=other.info.run_id)
    assert result.returncode == 0, result.stdout
    runs = {run.info.run_id: run for run in desk.client().search_runs(["0"])}
    assert len(runs) == 2
    assert runs[other.info.run_id].data.tags.get("finetune.job") is None


def test_project_path_with_spaces_and_unicode(desk, ask):
    folder = desk.path / "mein Bot ü #1"
    folder.mkdir()
    (folder / "MLproject").write_text("entry_points: {main: {command: 'pwd > here.txt'}}")
    job = ask({}, project_uri=str(folder), entry_point="main")
    assert FinetuneRun(job.run_id, job.folder, job.tracking_uri).wait()
    assert (folder / "here.txt").read_text().strip() == str(folder)


def test_runs_that_start_one_after_another_do_not_adopt_each_other(desk, ask, own_project):
    """A supervisor needs a second to say that it lives; the next command must not take its job for an orphan."""
    project = str(own_project("sleep 2"))
    jobs = [ask({}, project_uri=project, entry_point="main") for _ in range(3)]
    assert adopt_orphans() == []
    assert [command for command in children() if "--adopt" in command] == []
    for job in jobs:
        assert FinetuneRun(job.run_id, job.folder, job.tracking_uri).wait(), job.folder.read("outcome")


def test_second_supervisor_of_a_job_leaves_at_once(desk, ask, own_project):
    job = ask({}, project_uri=str(own_project("sleep 8")), entry_point="main")
    wait_for(lambda: job.folder.read("state"), 60, "supervisor")
    second = subprocess.run(
        [sys.executable, "-m", "mlflow_finetune_plugin.supervisor", str(job.folder.path), "--adopt", "1"],
        env=desk.environment,
        timeout=60,
        check=False,
    )
    assert second.returncode == 0
    assert job.folder.read("outcome") is None
    assert FinetuneRun(job.run_id, job.folder, job.tracking_uri).wait()


# what died earlier -----------------------------------------------------------------------------------------------


def dead_job(desk: Workplace, cwd: Path) -> tuple[JobFolder, str]:
    """A job as a power cut leaves it: its run says RUNNING and nobody is alive."""
    run = desk.client().create_run("0", tags={"finetune.attempt": "1"})
    folder = JobFolder.create()
    job = {"kind": "command", "command": ["true"], "cwd": str(cwd), "environment": {}, "attempt": 1}
    folder.write("job", {**job, "tracking_uri": desk.tracking_uri, "experiment_id": "0", "started_by": None})
    folder.write("run", {"run_id": run.info.run_id})
    folder.write("state", {"supervisor": None, "worker": None})
    return folder, run.info.run_id


def test_dead_job_whose_folder_is_gone_hinders_nobody(desk, ask):
    _, run_id = dead_job(desk, desk.path / "gone")
    with pytest.raises(FinetuneError, match="no entry point 'x'"):
        ask(entry_point="x")
    wait_for(lambda: desk.client().get_run(run_id).info.status == "FAILED", 60, "the dead run's end")


def test_old_folders_go_and_unfinished_ones_stay(desk):
    unfinished, _ = dead_job(desk, desk.path)
    finished, _ = dead_job(desk, desk.path)
    finished.write("outcome", {"status": "FINISHED", "reason": "", "recorded": True, "result": None})
    never_ran, young = JobFolder.create(), JobFolder.create()
    week_ago = time.time() - 8 * 24 * 3600
    for folder in (unfinished, finished, never_ran):
        os.utime(folder.path, (week_ago, week_ago))
    assert remove_old_folders(now_s=time.time()) == 2
    assert {folder.id for folder in JobFolder.all()} == {unfinished.id, young.id}


def test_run_of_this_host_without_a_job_folder_is_reaped(desk):
    client, host = desk.client(), socket.gethostname()
    folder = JobFolder.create()
    tags = {"finetune.heartbeat": "1", "finetune.host": host}
    lost = client.create_run("0", tags={**tags, "finetune.job": "20200101-000000-00000000"}).info.run_id
    kept = client.create_run("0", tags={**tags, "finetune.job": folder.id}).info.run_id
    assert [run_id for run_id, _ in reap_expired(client, ["0"], now_s=time.time())] == [lost]
    assert client.get_run(lost).info.status == "FAILED"
    assert client.get_run(kept).info.status == "RUNNING"


def children() -> list[str]:
    import psutil

    found = []
    for process in psutil.Process().children(recursive=True):
        if process.status() != psutil.STATUS_ZOMBIE:
            found.append(" ".join(process.cmdline()))
    return found


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"gpus_per_node": 99}, "-c gpus_per_node = 99: .* visible here; fix: at most that many"),
        ({"processes_per_node": 10_000}, "-c processes_per_node = 10000: .*; fix: "),
        ({"processes_per_node": 0}, "-c processes_per_node = 0: expected integer above 0"),
        ({"processes": 2}, "-c processes = 2: unknown key; known: launcher, detach, gpus_per_node, processes_per_node"),
    ],
)
def test_processes_that_cannot_be_had_are_refused(refused, config, why):
    assert re.search(why, refused(backend_config=config))
