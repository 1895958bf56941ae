"""Held-out rows as a run kept them, as prompts to walk through."""

import pytest
from proven_versions import register_proven, rows

from gradio_app.prompts.held_out import held_out_set
from mlflow_finetune_plugin.errors import DataError, GateError, MoveError
from mlflow_finetune_plugin.evaluation.results import EvalRow
from mlflow_finetune_plugin.store.clients import client_for


@pytest.fixture
def client(tmp_path, empty_store):
    return client_for(f"sqlite:///{_store(tmp_path, empty_store)}")


def _store(tmp_path, empty_store):
    path = tmp_path / "mlflow.db"
    path.write_bytes(empty_store.read_bytes())
    return path


def test_held_out_rows_are_a_set_with_their_references(client):
    version = register_proven(client, "bot", rows(3), 1)
    found = held_out_set(client, "bot", version)
    assert found.name == "held-out rows of version 1"
    assert [prompt.messages[0]["content"] for prompt in found.prompts] == ["question 0?", "question 1?", "question 2?"]
    assert [prompt.reference for prompt in found.prompts] == ["yes"] * 3
    assert found.prompts[2].id == "test.jsonl:3"


def test_rows_that_the_other_side_was_trained_on_are_left_out(client):
    version = register_proven(client, "bot", rows(3), 1)
    other = register_proven(client, "bot", rows(1), 1, trained_on=rows(2))
    found = held_out_set(client, "bot", version, others=[other, "base", version])
    assert [prompt.messages[0]["content"] for prompt in found.prompts] == ["question 2?"]
    assert found.notes == ("models:/bot/2 was trained on 2 of 3 held-out rows: they are left out",)


def test_a_version_without_rows_to_ask_says_so(client):
    with pytest.raises(DataError, match="models:/bot/1: its training run has no held-out rows; fix: train with"):
        held_out_set(client, "bot", register_proven(client, "bot", None, 0))
    text = EvalRow((), (1,), (2, 3), "a text", "task", "book.txt", 1)
    with pytest.raises(DataError, match="no held-out row can be used: they are texts without a question"):
        held_out_set(client, "bot", register_proven(client, "bot", [text], 0))
    with pytest.raises(MoveError, match="no version 9"):
        held_out_set(client, "bot", "9")


def test_rows_that_somebody_changed_are_not_asked(client):
    version = register_proven(client, "bot", rows(3), 1)
    client.set_tag(client.get_model_version("bot", version).run_id, "finetune.held_out_digest", "0" * 64)
    with pytest.raises(GateError, match="find out who changed it"):
        held_out_set(client, "bot", version)
