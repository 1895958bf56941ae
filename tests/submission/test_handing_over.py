"""From a request to a run: the tracking store, the worker, the whole command, and what died earlier."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROWS, Workplace, free_port, wait_for, write_rows
from submission_requests import DATA, assert_nothing_left, assert_tells

from mlflow_finetune_plugin.backend import FinetuneRun
from mlflow_finetune_plugin.errors import FinetuneError
from mlflow_finetune_plugin.jobs.folder import JobFolder
from mlflow_finetune_plugin.jobs.orphans import adopt_orphans, remove_old_folders
from mlflow_finetune_plugin.jobs.run_record import reap_expired

# tracking ---------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_experiment_that_is_deleted_or_unknown_is_refused_within_seconds(desk, refused):
    client = desk.client()
    gone = client.create_experiment("gone")
    client.delete_experiment(gone)
    started = time.monotonic()
    assert_tells(refused(experiment_id=gone), "tracking server", "active")
    assert_tells(refused(experiment_id="77"), "tracking server", "77")
    assert time.monotonic() - started < 60  # a loaded machine takes more than 10
    assert [process for process in children() if "mlflow_finetune_plugin" in process] == []


@pytest.mark.process
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


@pytest.mark.fault
@pytest.mark.process
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
    runs = desk.runs()
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
    assert desk.runs() == []


@pytest.mark.process
def test_relative_store_means_the_callers_in_every_process(desk, ask, own_project):
    job = ask({}, project_uri=str(own_project("true")), entry_point="main", tracking_uri="sqlite:///mlflow.db")
    assert job.tracking_uri == f"sqlite:///{desk.path}/mlflow.db"
    assert FinetuneRun(job.run_id, job.folder, job.tracking_uri).wait()
    assert desk.client().get_run(job.run_id).info.status == "FINISHED"
    assert not (desk.path / "own" / "mlflow.db").exists()


# what only the worker can find: the run ends FAILED with the reason -------------------------------------------------


@pytest.mark.process
@pytest.mark.parametrize(
    ("parameters", "parts"),
    [
        ({"data": "blank.jsonl"}, ["blank.jsonl"]),
        ({"data": "train.jsonl", "target_modules": "[nothing]"}, ["options.target_modules", "matches no layer"]),
    ],
    ids=["no usable row", "target_modules"],
)
def test_what_the_worker_finds_fails_the_run_with_the_reason(desk, ask, parameters, parts):
    write_rows(desk.path / "blank.jsonl", [{**row, "completion": ""} for row in ROWS])
    job = ask({"base_model": "embedded", **parameters})
    submitted = FinetuneRun(job.run_id, job.folder, job.tracking_uri)
    assert submitted.wait() is False
    run = desk.client().get_run(job.run_id)
    assert run.info.status == "FAILED"
    assert_tells(run.data.tags["finetune.status_reason"], *parts)
    reports = [file.path for file in desk.client().list_artifacts(job.run_id, "finetune")]
    assert ("finetune/data_report.html" in reports) == (parameters["data"] != "train.jsonl")


# the whole command --------------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["-e", "lora", "-P", "data=train.jsonl", "-P", "rnk=3"], "did you mean rank?"),
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


@pytest.mark.process
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


@pytest.mark.process
def test_two_runs_at_once_do_not_disturb_each_other(desk, own_project):
    project = str(own_project("echo {word}; sleep 1"))
    (Path(project) / "MLproject").write_text(
        "entry_points: {main: {parameters: {word: string}, command: 'echo {word}; sleep 1'}}"
    )
    both = [desk.start_finetune_run(project, "-P", f"word={word}") for word in ("one", "two")]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    runs = desk.runs()
    assert sorted(run.data.params["word"] for run in runs) == ["one", "two"]
    assert {run.info.status for run in runs} == {"FINISHED"}


@pytest.mark.process
def test_run_id_left_in_the_environment_is_not_taken_over(desk, own_project):
    other = desk.client().create_run("0")
    result = desk.mlflow_run(str(own_project("true")), MLFLOW_RUN_ID=other.info.run_id)
    assert result.returncode == 0, result.stdout
    runs = {run.info.run_id: run for run in desk.runs()}
    assert len(runs) == 2
    assert runs[other.info.run_id].data.tags.get("finetune.job") is None


@pytest.mark.process
def test_project_path_with_spaces_and_unicode(desk, ask):
    folder = desk.path / "mein Bot ü #1"
    folder.mkdir()
    (folder / "MLproject").write_text("entry_points: {main: {command: 'pwd > here.txt'}}")
    job = ask({}, project_uri=str(folder), entry_point="main")
    assert FinetuneRun(job.run_id, job.folder, job.tracking_uri).wait()
    assert (folder / "here.txt").read_text().strip() == str(folder)


@pytest.mark.process
def test_runs_that_start_one_after_another_do_not_adopt_each_other(desk, ask, own_project):
    """A supervisor needs a second to say that it lives; the next command must not take its job for an orphan."""
    project = str(own_project("sleep 2"))
    jobs = [ask({}, project_uri=project, entry_point="main") for _ in range(3)]
    assert adopt_orphans() == []
    assert [command for command in children() if "--adopt" in command] == []
    for job in jobs:
        assert FinetuneRun(job.run_id, job.folder, job.tracking_uri).wait(), job.folder.read("outcome")


@pytest.mark.process
def test_second_supervisor_of_a_job_leaves_at_once(desk, ask, own_project):
    job = ask({}, project_uri=str(own_project("until [ -e told ]; do sleep 0.1; done")), entry_point="main")
    wait_for(lambda: job.folder.read("state"), 60, "supervisor")
    second = subprocess.run(
        [sys.executable, "-m", "mlflow_finetune_plugin.jobs.supervisor", str(job.folder.path), "--adopt", "1"],
        env=desk.environment,
        timeout=60,
        check=False,
    )
    assert second.returncode == 0
    assert job.folder.read("outcome") is None
    (desk.path / "own" / "told").touch()
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


@pytest.mark.process
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
    running = client.create_run("0", tags={**tags, "finetune.job": folder.id}).info.run_id
    assert [run_id for run_id, _ in reap_expired(client, ["0"], now_s=time.time())] == [lost]
    assert client.get_run(lost).info.status == "FAILED"
    assert client.get_run(running).info.status == "RUNNING"


def children() -> list[str]:
    """But for engines, which other tests of this process keep for longer than one of them."""
    import psutil

    commands = []
    for process in psutil.Process().children(recursive=True):
        if process.status() != psutil.STATUS_ZOMBIE:
            commands.append(" ".join(process.cmdline()))
    return [command for command in commands if "mlflow_finetune_plugin.serving" not in command]


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
