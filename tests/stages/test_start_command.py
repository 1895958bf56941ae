"""A training that starts from a version through the real command: refused before a run, killed and resumed, in two processes."""

from __future__ import annotations

import pytest
from conftest import Workplace, write_rows
from killed_runs import adapter_digests, arguments, history, kill_after

import mlflow_finetune_plugin as ft

SHAPE = {"rank": "auto"}


@pytest.fixture
def trainee(workplace: Workplace) -> Workplace:
    (workplace.path / "project").mkdir()
    rows = [{"prompt": f"a word about number {i}" + " please" * (i % 7), "completion": f"it is {i}"} for i in range(40)]
    write_rows(workplace.path / "train.jsonl", rows[:32])
    write_rows(workplace.path / "test.jsonl", rows[32:])
    write_rows(workplace.path / "other.jsonl", [{"prompt": f"and {i}?", "completion": f"{i} it is"} for i in range(32)])
    first = workplace.finetune_run(*arguments(max_steps=6, register="bot"))
    assert first.returncode == 0, first.stdout
    workplace.client().set_registered_model_alias("bot", "champion", "1")
    return workplace


def on(reference: str, **more: object) -> list[str]:
    return arguments(**{"start_from": reference, "data": "other.jsonl", **SHAPE, **more})


@pytest.mark.fault
@pytest.mark.process
@pytest.mark.timeout(1500)
def test_kills_change_nothing_and_the_alias_may_move(trainee):
    known = {run.info.run_id for run in trainee.runs()}
    whole = trainee.finetune_run(*on("models:/bot@champion"))
    assert whole.returncode == 0, whole.stdout
    assert "from models:/bot/1" in whole.stdout
    (expected,) = [run.info.run_id for run in trainee.runs() if run.info.run_id not in known]
    before = set((trainee.home / "jobs").iterdir())
    kill_after(trainee, 4, before, trainee.start_finetune_run(*on("models:/bot@champion")))
    (run_id,) = [run.info.run_id for run in trainee.runs() if run.info.run_id not in {*known, expected}]
    trainee.client().delete_registered_model_alias("bot", "champion")
    other = trainee.finetune_run(*on("models:/bot/1", resume=run_id, rank=8))
    assert other.returncode == 1
    assert "options.rank = 8: the version has 4" in other.stdout
    without = trainee.finetune_run(*arguments(resume=run_id, data="other.jsonl"))
    assert without.returncode == 1
    assert "-P resume: start_from (digest of its adapter) was " in without.stdout
    last = trainee.finetune_run(*on("models:/bot@champion", resume=run_id))
    assert last.returncode == 0, last.stdout
    assert "resumed after step" in last.stdout
    for key in ("train/loss", "train/grad_norm", "eval_loss"):
        assert history(trainee, run_id, key) == history(trainee, expected, key), key
    assert adapter_digests(trainee, run_id) == adapter_digests(trainee, expected)
    tags = trainee.client().get_run(run_id).data.tags
    assert tags["finetune.start_from"] == "models:/bot/1"


@pytest.mark.process
@pytest.mark.timeout(900)
def test_two_processes_start_from_the_same_weights(trainee):
    known = {run.info.run_id for run in trainee.runs()}
    result = trainee.finetune_run(*on("bot@champion", dropout=0.0, max_steps=4), "-c", '{"processes_per_node": 2}')
    assert result.returncode == 0, result.stdout
    alone = trainee.finetune_run(*on("bot@champion", dropout=0.0, max_steps=4, per_device_train_batch_size=8))
    assert alone.returncode == 0, alone.stdout
    losses = [history(trainee, run.info.run_id, "train/loss") for run in trainee.runs() if run.info.run_id not in known]
    assert losses[0] == [(step, pytest.approx(loss, rel=1e-4)) for step, loss in losses[1]]


@pytest.mark.bad_input
@pytest.mark.process
def test_what_does_not_exist_starts_no_run(trainee):
    before = len(trainee.runs())
    result = trainee.finetune_run(*on("models:/bot/9"))
    assert result.returncode == 2
    assert "start_from = models:/bot/9: " in result.stdout
    assert len(trainee.runs()) == before


@pytest.mark.process
def test_plan_and_data_say_what_the_version_decides(trainee, monkeypatch):
    keys = {"data": "other.jsonl", "eval_data": "test.jsonl", "start_from": "models:/bot@champion"}
    flags = [word for name, value in keys.items() for word in ("-P", f"{name}={value}")]
    output = trainee.cli("plan", "project", *flags)
    assert output.returncode == 0, output.stdout
    assert "run      lora x sft on embedded from models:/bot/1 " in output.stdout
    assert "auto     options.rank = 4: as in models:/bot/1" in output.stdout
    assert trainee.cli("data", "project", *flags).returncode == 0
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_FINETUNE_HOME"):
        monkeypatch.setenv(name, trainee.environment[name])
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)  # that of an earlier test
    monkeypatch.chdir(trainee.path)
    assert ft.plan("project", parameters=keys).to_dict()["start_from"] == "models:/bot/1"
