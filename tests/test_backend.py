"""The backend as MLflow uses it: projects whose command is a plain program, so that no test waits for torch."""

from __future__ import annotations

import subprocess
from pathlib import Path

import click
import mlflow
import pytest
from conftest import Workplace, wait_for
from mlflow.exceptions import ExecutionException

from mlflow_finetune_plugin.backend import FinetuneRun


@pytest.fixture
def here(desk: Workplace) -> Workplace:
    """The desk, with MLflow's fluent API looking at its store."""
    mlflow.set_tracking_uri(desk.tracking_uri)
    return desk


def project(folder: Path, text: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "MLproject").write_text(text)
    return str(folder)


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=T", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def start(uri: str, **more: object) -> FinetuneRun:
    found = mlflow.projects.run(uri, backend="finetune", experiment_id="0", **more)
    assert isinstance(found, FinetuneRun)
    return found


@pytest.mark.process
def test_synchronous_run_is_finished_and_says_where_it_came_from(here):
    folder = here.path / "bot"
    project(
        folder,
        "entry_points: {main: {parameters: {word: string, n: {default: 2}}, "
        "command: 'echo {word} {n} > said.txt; pwd > cwd.txt; echo \"$MLFLOW_RUN_ID $MLFLOW_TRACKING_URI\" > env.txt'}}",
    )
    git(folder, "init", "-q")
    git(folder, "remote", "add", "origin", "https://example.org/bot.git")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    word = 'it\'s "two"; words $HOME'
    submitted = start(str(folder), parameters={"word": word})
    assert submitted.get_status() == "FINISHED"
    run = here.client().get_run(submitted.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"word": word, "n": "2"}
    assert (folder / "said.txt").read_text().strip() == f"{word} 2"
    assert (folder / "cwd.txt").read_text().strip() == str(folder)
    assert (folder / "env.txt").read_text().split() == [submitted.run_id, here.tracking_uri]
    expected = {
        "mlflow.source.type": "PROJECT",
        "mlflow.source.name": str(folder),
        "mlflow.project.entryPoint": "main",
        "mlflow.project.backend": "finetune",
        "mlflow.project.env": "local",
        "mlflow.source.git.commit": git(folder, "rev-parse", "HEAD"),
        "mlflow.source.git.repoURL": "https://example.org/bot.git",
    }
    assert {key: run.data.tags.get(key) for key in expected} == expected
    assert run.data.tags["mlflow.user"]


@pytest.mark.process
def test_version_runs_that_commit_and_leaves_the_checkout(here):
    folder = here.path / "repo"
    said = here.path / "said.txt"
    project(folder, f"entry_points: {{main: {{command: 'echo one > {said}'}}}}")
    git(folder, "init", "-qb", "main")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    git(folder, "tag", "v1")
    project(folder, f"entry_points: {{main: {{command: 'echo two > {said}'}}}}")
    git(folder, "commit", "-qam", "two")
    submitted = start(f"file://{folder}", version="v1")
    assert said.read_text() == "one\n"
    tags = here.client().get_run(submitted.run_id).data.tags
    assert tags["mlflow.source.git.commit"] == git(folder, "rev-parse", "v1")
    assert git(folder, "symbolic-ref", "--short", "HEAD") == "main"
    assert "echo two" in (folder / "MLproject").read_text()


@pytest.mark.process
def test_synchronous_run_that_fails_raises(here, own_project):
    with pytest.raises(ExecutionException, match="failed"):
        start(str(own_project("exit 3")))
    run = here.only_run()
    assert run.info.status == "FAILED"
    assert "exit code 3" in run.data.tags["finetune.status_reason"]


def test_bad_request_raises_execution_exception_with_the_message(here):
    with pytest.raises(ExecutionException, match=r"-P rnk: unknown key rnk \(= 8\); did you mean rank\?"):
        start(".", entry_point="lora", parameters={"data": "train.jsonl", "rnk": 8, "epochs": None})
    assert here.runs() == []


@pytest.mark.process
def test_asynchronous_run_is_nested_and_can_be_cancelled(here, own_project):
    with mlflow.start_run(experiment_id="0") as parent:
        submitted = start(str(own_project("sleep 300")), synchronous=False)
        assert mlflow.active_run().info.run_id == parent.info.run_id
    assert submitted.get_status() == "RUNNING"
    assert submitted.reason() == ""
    submitted.cancel()
    assert submitted.get_status() == "KILLED"
    assert submitted.wait() is False
    run = here.client().get_run(submitted.run_id)
    assert run.info.status == "KILLED"
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id


@pytest.mark.process
def test_asynchronous_run_can_be_waited_for_from_somebodys_own_run_command(here, own_project):
    """A click command that happens to be called run is not ``mlflow run``: it is not made to wait."""
    found: list[FinetuneRun] = []

    @click.command("run")
    def run() -> None:
        found.append(start(str(own_project("sleep 2")), synchronous=False))
        assert found[0].get_status() == "RUNNING"

    run.main(args=[], prog_name="trainer run", standalone_mode=False)
    assert found[0].wait() is True
    assert found[0].get_status() == "FINISHED"


@pytest.mark.process
def test_python_values_arrive_as_they_would_on_the_command_line(here, own_project):
    values = {"n": 3, "rate": 1e-5, "flag": True, "names": ["a", "b"], "none": None}
    submitted = start(str(own_project("true")), parameters=values, synchronous=False)
    assert submitted.wait()
    params = here.client().get_run(submitted.run_id).data.params
    assert params == {"n": "3", "rate": "1e-05", "flag": "True", "names": '["a", "b"]', "none": "null"}


@pytest.mark.process
def test_run_name_and_experiment_are_there_while_it_runs(here, own_project):
    process = here.start_mlflow_run(
        str(own_project("sleep 300")), "--run-name", "my run", "--experiment-name", "my experiment"
    )
    here.job()

    def running():  # type: ignore[no-untyped-def]
        experiment = here.client().get_experiment_by_name("my experiment")
        runs = here.client().search_runs([experiment.experiment_id]) if experiment else []
        return runs[0] if runs else None

    run = wait_for(running, 60, "run")
    assert (run.info.run_name, run.info.status) == ("my run", "RUNNING")
    process.terminate()
    process.communicate(timeout=60)


PRESET = """
entry_points:
  bot:
    parameters: {rank: {default: 8}, data: {type: path, default: none.jsonl}}
    command: "mlflow-finetune run . -e lora -P options.rank={rank} -P data={data}"
"""


@pytest.mark.parametrize(
    ("parameters", "parts"),
    [
        ({}, ["{}/bot/none.jsonl: no such file"]),
        ({"data": "mine.jsonl"}, ["{}/mine.jsonl: no such file"]),
        ({"rank": "big"}, ["-P options.rank: options.rank = 'big'"]),
        ({"rnk": "3"}, ["-P rnk: unknown key rnk", "did you mean rank?"]),
    ],
)
def test_preset_is_checked_as_if_it_had_been_typed(here, parameters, parts):
    with pytest.raises(ExecutionException) as caught:
        start(project(here.path / "bot", PRESET), entry_point="bot", parameters=parameters)
    for part in parts:
        assert part.format(here.path) in str(caught.value)
    assert here.runs() == []
    assert not list((here.home / "jobs").iterdir())


def test_entry_points_of_the_mlproject_are_among_the_choices(here):
    with pytest.raises(
        ExecutionException,
        match=r"no entry point 'botx'; did you mean bot\? fix: pick one of: lora, .*, evaluate, promote, watch, bot$",
    ):
        start(project(here.path / "bot", PRESET), entry_point="botx")
