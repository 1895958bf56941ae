"""The Python API: light to import, typed, and the same functions that the command line calls."""

import json
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from proven_versions import register_proven, rows

import mlflow_finetune_plugin as ft
from mlflow_finetune_plugin import api
from mlflow_finetune_plugin.errors import ConfigError, RunFailedError
from mlflow_finetune_plugin.gate.policy import GatePolicy


@pytest.mark.process
def test_importing_is_light_and_every_name_is_there():
    code = (
        "import sys, mlflow_finetune_plugin as ft; ft.run, ft.plan, ft.check_data, ft.export, ft.promote, ft.check_champion;"
        "print([n for n in ('torch', 'transformers', 'gradio', 'trl', 'peft', 'scipy', 'matplotlib') if n in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
    for name in api.__all__:
        assert getattr(ft, name) is getattr(api, name)
        assert name in dir(ft)


def test_check_data_returns_the_report(desk):
    checked = ft.check_data("train.jsonl", parameters={"data.eval": 0.2})
    assert checked.is_usable
    assert checked.to_dict()["kept"] == 20
    assert "<html" in checked._repr_html_()


def test_check_data_shows_why_rows_cannot_be_used(desk):
    checked = ft.check_data("train.jsonl", parameters={"max_length": 4})
    assert not checked.is_usable
    assert "longer than max_length" in checked.problem


def test_plan_predicts_without_a_run(desk):
    (desk.path / "finetune.yaml").write_text("base_model: embedded\ndata: train.jsonl\n")
    planned = ft.plan(parameters={"max_steps": 3})
    assert planned.exit_code == 0
    assert json.loads(json.dumps(planned.to_dict()))["forecast"]
    assert desk.runs() == []


@pytest.mark.process
@pytest.mark.bad_input
def test_plan_checks_rewards_against_the_rows(desk):
    (desk.path / "finetune.yaml").write_text("base_model: embedded\ndata: train.jsonl\n")
    (desk.path / "reward.py").write_text("def score(completion, wages):\n    return 1.0\n")
    with pytest.raises(ConfigError, match="wages"):
        ft.plan(entry_point="grpo", parameters={"reward": "reward.py:score"})
    (desk.path / "reward.py").write_text("import no_such_module\n")
    with pytest.raises(ConfigError, match="no_such_module"):
        ft.plan(entry_point="grpo", parameters={"reward": "reward.py:score"})
    (desk.path / "reward.py").write_text("def score(completion):\n    return 1.0\n")
    assert ft.plan(entry_point="grpo", parameters={"reward": "reward.py:score"}).exit_code == 0


def test_a_request_that_is_not_valid_starts_nothing(desk):
    with pytest.raises(ConfigError, match="did you mean rank"):
        ft.run(REPOSITORY / "recipes" / "quickstart", "lora", {"rnk": 3})
    assert desk.runs() == []


@pytest.mark.process
def test_run_trains_and_returns_what_was_registered(desk):
    (desk.path / "finetune.yaml").write_text(
        "base_model: embedded\ndata: train.jsonl\ntraining: {max_steps: 2}\nregister: {name: bot}\n"
        "eval: {metrics: [exact_match], max_new_tokens: 4, forgetting: false}\n"
    )
    result = ft.run(entry_point="lora")
    assert (result.status, result.model_uri) == ("FINISHED", "models:/bot/1")
    assert any(name.startswith("train/") or "loss" in name for name in result.metrics)
    assert result.run_id in result._repr_html_()
    again = ft.evaluate("bot/1", "train.jsonl")
    assert again.status == "FINISHED"
    assert again.run_id != result.run_id


@pytest.mark.process
def test_a_run_that_fails_raises_its_reason(desk, own_project):
    with pytest.raises(RunFailedError, match="code 3") as failure:
        ft.run(own_project("exit 3"))
    assert failure.value.run_id


def test_promote_check_and_roll_back_return_what_was_decided_and_moved(desk):
    import mlflow

    mlflow.set_tracking_uri(desk.tracking_uri)
    policy = GatePolicy.model_validate({"gain": {"metric": "exact_match"}})
    for right in (40, 90):
        register_proven(desk.client(), "bot", rows(100), right=right, policy=policy, base="b" * 64)
    first = ft.promote("bot", 1)
    assert (first.outcome, first.is_promoted, first.exit_code, first.version) == ("promote", True, 0, "1")
    assert "<html" in first._repr_html_()
    assert ft.promote("bot/1").outcome == "unchanged"
    rehearsal = ft.promote("bot", dry_run=True)
    assert (rehearsal.outcome, rehearsal.move, rehearsal.run_id) == ("promote", None, None)
    lines: list[str] = []
    assert ft.promote("bot", on_progress=lines.append).move.to_version == "2"
    assert lines == [
        "version 2 was chosen, because it is the challenger (the newest version that scored better than its base)"
    ]
    assert ft.promote("bot", alias="trial", version=1).exit_code == 0
    check = ft.check_champion("bot")
    assert (check.outcome, check.version, check.move) == ("keep", "2", None)
    assert json.loads(json.dumps(check.to_dict()))["run_id"] == check.run_id
    back = ft.rollback("bot", "too slow")
    assert (back.version, back.to_dict()["move"]["from_version"]) == ("1", "2")
    moves = ft.history("bot")
    assert [record.kind for record in moves.records] == ["rollback", "promote", "promote", "promote"]
    assert "too slow" in moves._repr_html_()
    with pytest.raises(AttributeError):
        first.outcome = "hold"
