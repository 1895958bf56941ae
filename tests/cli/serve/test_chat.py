"""``mlflow-finetune chat`` over a real endpoint, with piped messages."""

import io
import json

import pytest
from proven_versions import register_proven, rows
from streaming_endpoint import streaming_endpoint

from mlflow_finetune_plugin.cli.main import main
from mlflow_finetune_plugin.cli.serve.chat import _served
from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.store.model_ref import parse_model_ref


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    scripts = {"bot/1": {"text": "it is one"}, "bot@champion": {"text": "it is the champion"}}
    with streaming_endpoint(scripts, tmp_path_factory.mktemp("endpoint")) as url:
        yield url


def chat(monkeypatch, *arguments: str, typed: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    return main(["chat", *arguments])


def test_each_line_is_answered_by_the_version_that_was_named(endpoint, monkeypatch, capsys):
    assert chat(monkeypatch, "models:/bot/1", "--endpoint", endpoint, typed="hello\n\nagain\n/exit\nnever\n") == 0
    assert capsys.readouterr().out == "it is one\nit is one\n"
    assert chat(monkeypatch, "bot@champion", "--endpoint", endpoint, typed="hello\n/new\nhello") == 0
    assert capsys.readouterr().out == "it is the champion\nit is the champion\n"


def test_a_model_that_the_endpoint_does_not_have_is_one_error(endpoint, monkeypatch, capsys):
    assert chat(monkeypatch, "other", "--endpoint", endpoint, typed="hello\n") == 2
    assert "other" in capsys.readouterr().err


def test_an_endpoint_that_is_not_there_is_one_error(monkeypatch, capsys):
    assert chat(monkeypatch, "bot", "--endpoint", "http://127.0.0.1:9/v1", typed="hello\n") == 2
    assert "fix: check the endpoint" in capsys.readouterr().err


def test_the_conversation_is_sent_whole(monkeypatch, capsys):
    from mlflow_finetune_plugin.cli.serve import chat as room

    sent = []

    def answer(url, model, messages, sampling):
        assert sampling == {"temperature": 0.0}, "how long an answer may be is left to the endpoint"
        sent.append(json.loads(json.dumps(messages)))
        yield "yes"

    monkeypatch.setattr(room, "stream_answer", answer)
    assert (
        chat(monkeypatch, "bot", "--endpoint", "http://x/v1", "--system", "be brief", typed="one\ntwo\n/new\nthree\n")
        == 0
    )
    assert [[message["content"] for message in messages] for messages in sent] == [
        ["be brief", "one"],
        ["be brief", "one", "yes", "two"],
        ["be brief", "three"],
    ]


@pytest.mark.parametrize("command", ["chat", "playground"])
def test_no_database_is_created_where_there_is_none(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    module = "mlflow_finetune_plugin.cli.compare.playground"
    monkeypatch.setattr(f"{module}.current_store_uris", lambda: ("sqlite:///mlflow.db",))
    assert main([command, "my-bot"]) == 2
    assert "no MLflow tracking store at" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.store
def test_the_challenger_answers_where_a_bare_name_would_be_refused(client, capsys):
    first = register_proven(client, "bot", rows(2), right=1)
    assert str(_served(parse_model_ref("bot"))) == "bot@challenger"
    assert capsys.readouterr().err == f"No version is champion yet: the challenger, version {first}, answers.\n"
    assert str(_served(parse_model_ref("bot/1"))) == "bot/1"
    client.set_registered_model_tag("bot", "finetune.split", "challenger=1")
    assert str(_served(parse_model_ref("bot"))) == "bot"
    client.delete_registered_model_tag("bot", "finetune.split")
    client.set_registered_model_alias("bot", "champion", first)
    assert str(_served(parse_model_ref("bot"))) == "bot"
    for alias in ("champion", "challenger"):
        client.delete_registered_model_alias("bot", alias)
    with pytest.raises(ConfigError, match=r"bot: has neither a champion nor a challenger; fix: bot/NUMBER"):
        _served(parse_model_ref("bot"))
