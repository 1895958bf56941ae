"""``mlflow-finetune rollback`` and ``history``, as a shell runs them."""

from __future__ import annotations

import json

import pytest
from alias_moves import AFTER_THE_ALIAS, aliases_of, promote, register_versions, run_killed, take_back

from mlflow_finetune_plugin.cli.main import main
from mlflow_finetune_plugin.promotion.moves.audit import promotions_experiment
from mlflow_finetune_plugin.promotion.moves.lease import Lease


@pytest.fixture
def say(capsys, desk):
    """Runs a command in this process: (exit code, stdout, stderr)."""
    import mlflow

    mlflow.set_tracking_uri(desk.tracking_uri)

    def say(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        return (code, *capsys.readouterr())

    return say


@pytest.fixture
def client(desk):
    client = desk.client()
    register_versions(client, "bot", 3)
    promote(client, "bot", "1", None)
    promote(client, "bot", "2", "1")
    return client


def test_rollback_says_what_moved_and_history_tells_it(say, client):
    code, out, _ = say("rollback", "bot", "--reason", "rude answers")
    assert code == 0
    assert out.startswith("bot: champion 2 -> 1, previous is 2 (run ")
    code, out, err = say("history", "bot")
    lines = out.splitlines()
    assert (code, err, len(lines)) == (0, "", 4)
    assert lines[0].split() == ["when", "what", "alias", "version", "who", "run", "why"]
    assert "rollback  champion  2 -> 1" in lines[1]
    assert lines[1].endswith("rude answers")
    assert lines[3].endswith("gain: +0.2 over the champion")


def test_history_prints_json(say, client):
    client.set_registered_model_alias("bot", "champion", "3")
    code, out, _ = say("history", "bot", "--json")
    told = json.loads(out)
    assert code == 0
    assert [(move["kind"], move["from_version"], move["to_version"]) for move in told] == [
        ("unexplained", "2", "3"),
        ("promote", "1", "2"),
        ("promote", None, "1"),
    ]


def test_faults_are_told_with_exit_code_2(say, client):
    client.delete_registered_model_alias("bot", "previous")
    code, _, err = say("rollback", "bot")
    assert code == 2
    assert "nothing to go back to" in err
    assert "fix:" in err
    for command in ("rollback", "history"):
        code, _, err = say(command, "bott")
        assert code == 2
        assert "no registered model 'bott'" in err


def test_history_of_a_model_that_was_never_moved(say, client):
    client.create_registered_model("new")
    assert say("history", "new")[:2] == (0, "new: no alias has been moved\n")


def test_history_settles_what_was_cut_off_and_tells_it(say, client, desk):
    assert run_killed(desk.tracking_uri, AFTER_THE_ALIAS, take_back, "bot")
    with Lease(client, "bot"):
        code, out, err = say("history", "bot")
        assert code == 0
        assert "moves its aliases, until" in err
        assert len(out.splitlines()) == 3
    code, out, err = say("history", "bot")
    assert "was cut off after the alias had moved; it is finished" in err
    assert "rollback  champion  2 -> 1" in out
    assert aliases_of(client, "bot") == ("1", "2")


def test_a_rollback_without_a_record_says_so(say, client):
    client.delete_experiment(promotions_experiment(client, "bot"))
    code, out, err = say("rollback", "bot")
    assert (code, out) == (0, "bot: champion 2 -> 1, previous is 2 (not recorded yet)\n")
    assert "its record could not be written: the experiment 'bot.promotions' is deleted" in err


def test_rollback_prints_json(say, client):
    code, out, _ = say("rollback", "bot", "--json", "--reason", "rude answers")
    result = json.loads(out)
    assert (code, result["model"], result["ended_canary"]) == (0, "bot", None)
    assert (result["move"]["from_version"], result["move"]["to_version"], result["move"]["previous"]) == ("2", "1", "2")


def test_a_version_is_not_a_model_to_roll_back(say, client):
    for command in ("rollback", "history", "watch"):
        code, _, err = say(command, "bot/1")
        assert code == 2
        assert "names one version, and this command works on the whole model; fix: bot" in err
    assert aliases_of(client, "bot") == ("2", "1")


@pytest.mark.parametrize("command", ["promote", "rollback", "history", "watch"])
def test_a_command_without_a_store_creates_none(command, tmp_path, monkeypatch, capsys):
    import mlflow

    before = mlflow.get_tracking_uri()
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    try:
        assert main([command, "bot"]) == 2
    finally:
        mlflow.set_tracking_uri(before)
    assert "no MLflow tracking store at" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
