"""The experiment and the name of a run whose user chose neither."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import mlflow
import pytest
from conftest import Workplace
from mlflow.tracking import fluent

from mlflow_finetune_plugin.errors import TrackingError
from mlflow_finetune_plugin.submission.experiment import (
    chosen_experiment,
    next_run_name,
    project_experiment,
    project_name,
)

TODAY = date(2026, 11, 22)


@pytest.mark.parametrize(
    ("mlproject", "source", "name"),
    [
        ("name: my bot", "/somewhere/else", "my bot"),
        ("entry_points: {}", "/somewhere/support-bot", "support-bot"),
        ("name: 7", "https://example.org/team/bot.git", "bot"),
        (None, "https://example.org/team/bots.git#support", "support"),
        (None, "git@example.org:bot.git", "bot"),
        (None, "/", "finetune"),
    ],
)
def test_project_is_named_by_its_mlproject_else_by_where_it_came_from(
    tmp_path: Path, mlproject: str | None, source: str, name: str
) -> None:
    if mlproject is not None:
        (tmp_path / "MLproject").write_text(mlproject)
    assert project_name(tmp_path, source) == name


def test_default_experiment_counts_as_chosen_only_when_it_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fluent, "_active_experiment_id", None)
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    assert chosen_experiment("0", is_explicit=False) is None
    assert chosen_experiment("0", is_explicit=True) == "0"
    assert chosen_experiment("7", is_explicit=False) == "7"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    assert chosen_experiment("0", is_explicit=False) == "0"
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    monkeypatch.setattr(fluent, "_active_experiment_id", "0")  # after mlflow.set_experiment("Default")
    assert chosen_experiment("0", is_explicit=False) == "0"


def test_project_experiment_is_created_once_and_refused_when_deleted(desk: Workplace) -> None:
    client = desk.client()
    experiment_id = project_experiment(client, desk.tracking_uri, "my-bot")
    assert client.get_experiment(experiment_id).name == "my-bot"
    assert project_experiment(client, desk.tracking_uri, "my-bot") == experiment_id
    client.delete_experiment(experiment_id)
    with pytest.raises(
        TrackingError, match=f"deleted; fix: mlflow experiments restore --experiment-id {experiment_id}"
    ):
        project_experiment(client, desk.tracking_uri, "my-bot")


def test_runs_are_numbered_by_entry_point_and_day(desk: Workplace) -> None:
    client = desk.client()
    experiment_id = client.create_experiment("bot")

    def create() -> str:
        name = next_run_name(client, experiment_id, "lora", TODAY)
        client.create_run(experiment_id, run_name=name)
        return name

    assert create() == "lora-2026-11-22-1"
    for other in ("lora-2026-11-21-7", "qlora-2026-11-22-5", "lora-2026-11-22-best", "lora-2026-11-22-9"):
        client.create_run(experiment_id, run_name=other)
    assert create() == "lora-2026-11-22-10"
    assert next_run_name(client, experiment_id, "o'clock", TODAY) == "o'clock-2026-11-22-1"


@pytest.mark.process
def test_run_lands_in_the_experiment_of_its_project(desk, ask, own_project, monkeypatch) -> None:
    monkeypatch.setattr(fluent, "_active_experiment_id", None)
    mlflow.set_tracking_uri(desk.tracking_uri)
    folder = own_project("true")
    (folder / "MLproject").write_text("name: my-bot\nentry_points: {main: {command: 'true'}}")
    jobs = [
        ask({}, project_uri=str(folder), entry_point="main", **more)
        for more in ({"experiment_id": None}, {"experiment_id": None, "run_name": "mine"}, {"experiment_id": "0"})
    ]
    client = desk.client()
    runs = [client.get_run(job.run_id) for job in jobs]
    experiments = [client.get_experiment(run.info.experiment_id).name for run in runs]
    assert experiments == ["my-bot", "my-bot", "Default"]
    assert [run.info.run_name for run in runs[:2]] == [f"main-{date.today().isoformat()}-1", "mine"]
    with mlflow.start_run(experiment_id="0") as parent:
        nested = ask({}, project_uri=str(folder), entry_point="main", experiment_id=None)
    assert client.get_run(nested.run_id).info.experiment_id == parent.info.experiment_id
