"""Promotion and rollback on a real registry: what moves, what is refused, what is recorded."""

from __future__ import annotations

import shutil
from pathlib import Path

import mlflow
import pytest
from alias_moves import aliases_of, evidence, faults_after_settling, moves_of, register_versions, run_killed, take_back
from mlflow.exceptions import MlflowException

from mlflow_finetune_plugin.errors import LeaseError, MoveError, TrackingError
from mlflow_finetune_plugin.promotion.moves.audit import history, promotions_experiment, record_decision
from mlflow_finetune_plugin.promotion.moves.intent import Intent, MoveEvidence
from mlflow_finetune_plugin.promotion.moves.lease import Lease
from mlflow_finetune_plugin.promotion.moves.move import promote_version, roll_back
from mlflow_finetune_plugin.promotion.moves.settlement import settle
from mlflow_finetune_plugin.store.names import INTENT_TAG, UNRECORDED_TAG
from mlflow_finetune_plugin.store.people import who_moves

pytestmark = pytest.mark.store


@pytest.fixture
def client(workplace):
    client = workplace.client()
    register_versions(client, "bot", 3)
    return client


@pytest.fixture
def moved(client):
    """Champion 2, previous 1."""
    promote_version(client, "bot", "1", evidence=evidence(None))
    promote_version(client, "bot", "2", evidence=evidence("1"))
    return client


def test_the_first_promotion_sets_no_previous(client):
    move = promote_version(client, "bot", "1", evidence=evidence(None))
    assert move.text == "bot: champion none -> 1"
    assert aliases_of(client, "bot") == ("1", None)
    with pytest.raises(MoveError, match="nothing to go back to"):
        roll_back(client, "bot")


def test_a_promotion_is_recorded_with_its_evidence(moved):
    run_id = moved.create_run(promotions_experiment(moved, "bot")).info.run_id
    judged = evidence("2", run_id=run_id, candidate_digest="c" * 64, champion_digest="a" * 64)
    move = promote_version(moved, "bot", 3, evidence=judged)
    assert (move.run_id, move.previous, aliases_of(moved, "bot")) == (run_id, "2", ("3", "2"))
    newest = history(moved, "bot")[0]
    assert (newest.kind, newest.outcome, newest.is_moved) == ("promote", "promote", True)
    assert (newest.from_version, newest.to_version, newest.reason) == ("2", "3", "gain: +0.2 over the champion")
    assert (newest.policy_digest, newest.candidate_digest, newest.champion_digest) == ("d" * 64, "c" * 64, "a" * 64)
    assert (newest.run_id, newest.evidence_run_id) == (run_id, run_id)
    assert "champion 2 -> 3" in moved.get_model_version("bot", "3").tags["finetune.promoted"]
    assert "finetune.promoted" in moved.get_model_version("bot", "2").tags


def test_a_rollback_swaps_and_is_undone_by_another(moved):
    move = roll_back(moved, "bot", reason="rude answers")
    assert move.text == "bot: champion 2 -> 1, previous is 2"
    assert aliases_of(moved, "bot") == ("1", "2")
    assert "champion 2 -> 1" in moved.get_model_version("bot", "2").tags["finetune.rolled_back"]
    roll_back(moved, "bot")
    assert aliases_of(moved, "bot") == ("2", "1")
    assert [(move.kind, move.reason) for move in moves_of(moved, "bot")[:2]] == [
        ("rollback", ""),
        ("rollback", "rude answers"),
    ]
    assert faults_after_settling(moved, "bot") == []


def test_another_alias_moves_without_previous(moved):
    promote_version(moved, "bot", "3", alias="canary", evidence=evidence(None))
    assert moved.get_registered_model("bot").aliases == {"champion": 2, "previous": 1, "canary": 3}
    with pytest.raises(MoveError, match="'previous' follows"):
        promote_version(moved, "bot", "3", alias="previous", evidence=evidence("1"))


@pytest.mark.parametrize(
    ("version", "judged", "message"),
    [
        ("2", evidence("2"), "version 2 is champion already"),
        ("3", evidence("1"), "judged against version 1, but champion is version 2 now"),
        ("3", evidence(None), "judged against no version"),
        ("9", evidence("2"), "version 9, named to promote, does not exist"),
        ("3", MoveEvidence("hold", "d" * 64, "too few rows", champion="2"), "is 'hold'"),
        ("3", evidence("2", run_id="f" * 32), "run f+ does not exist"),
    ],
)
def test_what_is_refused_moves_nothing(moved, version, judged, message):
    with pytest.raises(MoveError, match=message):
        promote_version(moved, "bot", version, evidence=judged)
    assert aliases_of(moved, "bot") == ("2", "1")
    assert len(moves_of(moved, "bot")) == 2
    assert faults_after_settling(moved, "bot") == []


def test_an_unknown_model_and_a_lease_in_other_hands_are_told(moved):
    with pytest.raises(MoveError, match="no registered model 'bott'"):
        roll_back(moved, "bott")
    with Lease(moved, "bot"), pytest.raises(LeaseError):
        roll_back(moved, "bot")
    assert aliases_of(moved, "bot") == ("2", "1")


def test_a_decision_run_must_be_able_to_carry_the_record(moved):
    elsewhere = moved.create_run(moved.create_experiment("elsewhere")).info.run_id
    with pytest.raises(MoveError, match=r"not in the experiment bot\.promotions"):
        promote_version(moved, "bot", "3", evidence=evidence("2", run_id=elsewhere))


def test_previous_that_was_deleted_leaves_nothing_to_go_back_to(moved):
    moved.delete_model_version("bot", "1")
    with pytest.raises(MoveError, match="goes with its version when that is deleted"):
        roll_back(moved, "bot")
    assert aliases_of(moved, "bot") == ("2", None)


@pytest.mark.fault
def test_previous_that_names_a_version_which_is_gone_moves_nothing(moved, workplace):
    """MLflow removes the alias with its version; other stores, and hands in the database, need not."""
    import sqlite3

    with sqlite3.connect(workplace.path / "mlflow.db") as database:
        database.execute("UPDATE registered_model_aliases SET version = 77 WHERE alias = 'previous'")
    with pytest.raises(MoveError, match="version 77, named by previous, does not exist; nothing was moved"):
        roll_back(moved, "bot")
    assert aliases_of(moved, "bot") == ("2", "77")


MODEL = """
import mlflow
class Echo(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input
mlflow.models.set_model(Echo())
"""


def test_rollback_needs_nothing_of_the_versions_tracking_data(desk, tmp_path):
    client, source, runs = desk.client(), Path(tmp_path / "echo.py"), []
    source.write_text(MODEL)
    mlflow.set_tracking_uri(desk.tracking_uri)
    experiment = client.create_experiment("training", artifact_location=str(tmp_path / "artifacts"))
    for _ in range(2):
        run_id = client.create_run(experiment).info.run_id
        model = mlflow.models.Model.log(
            artifact_path=None, name="m", flavor=mlflow.pyfunc, run_id=run_id, python_model=str(source),
            signature=mlflow.models.ModelSignature(params=mlflow.types.ParamSchema([])), pip_requirements=[],
        )  # fmt: skip
        mlflow.register_model(f"models:/{model.model_id}", "real")
        runs.append((run_id, model.model_id))
    promote_version(client, "real", "1", evidence=evidence(None))
    promote_version(client, "real", "2", evidence=evidence("1"))
    for run_id, model_id in runs:
        shutil.rmtree(client.get_logged_model(model_id).artifact_location)
        client.delete_run(run_id)
        client.delete_logged_model(model_id)
    client.delete_experiment(experiment)
    for move in moves_of(client, "real"):
        client.delete_run(move.run_id)
    assert roll_back(client, "real").text == "real: champion 2 -> 1, previous is 2"
    assert faults_after_settling(client, "real") == []


def test_a_move_by_hand_shows_as_unexplained_before_and_after_the_next_move(moved):
    moved.set_registered_model_alias("bot", "champion", "3")
    newest = history(moved, "bot")[0]
    assert (newest.kind, newest.from_version, newest.to_version, newest.run_id) == ("unexplained", "2", "3", None)
    with pytest.raises(MoveError, match="champion is version 3 now"):
        promote_version(moved, "bot", "1", evidence=evidence("2"))
    roll_back(moved, "bot")
    assert aliases_of(moved, "bot") == ("1", "3")
    moves = [(move.kind, move.from_version, move.to_version) for move in history(moved, "bot")[:3]]
    assert moves == [("rollback", "3", "1"), ("unexplained", "2", "3"), ("promote", "1", "2")]


def test_a_champion_deleted_by_hand_shows_too_and_can_be_followed(moved):
    moved.delete_model_version("bot", "2")
    assert (history(moved, "bot")[0].kind, history(moved, "bot")[0].to_version) == ("unexplained", None)
    roll_back(moved, "bot")
    assert aliases_of(moved, "bot") == ("1", "1")
    with pytest.raises(MoveError, match="both version 1"):
        roll_back(moved, "bot")


def test_deleted_records_make_no_unexplained_moves(moved):
    promote_version(moved, "bot", "3", evidence=evidence("2"))
    newest, middle, _ = history(moved, "bot")
    moved.delete_run(middle.run_id)
    assert [move.to_version for move in history(moved, "bot")] == ["3", "1"]
    moved.delete_run(newest.run_id)
    assert [move.to_version for move in history(moved, "bot")] == ["1"]


def test_decisions_that_held_are_told_with_the_moves(moved):
    judged = MoveEvidence("hold", "d" * 64, "120 rows are too few", champion="2")
    record_decision(moved, "bot", "3", evidence=judged)
    newest = history(moved, "bot")[0]
    assert (newest.outcome, newest.is_moved, newest.from_version, newest.to_version) == ("hold", False, "2", "3")
    assert (newest.who, newest.reason) == (who_moves(), "120 rows are too few")
    assert aliases_of(moved, "bot") == ("2", "1")


def test_history_reads_every_page(client, monkeypatch):
    monkeypatch.setattr("mlflow_finetune_plugin.promotion.moves.audit._PAGE", 2)
    promote_version(client, "bot", "1", evidence=evidence(None))
    promote_version(client, "bot", "2", evidence=evidence("1"))
    for _ in range(5):
        roll_back(client, "bot")
    assert len(history(client, "bot")) == 7


@pytest.mark.fault
def test_a_move_whose_record_cannot_be_written_stands_and_the_next_call_records_it(moved):
    experiment = promotions_experiment(moved, "bot")
    moved.delete_experiment(experiment)
    move = roll_back(moved, "bot", reason="now")
    assert move.run_id is None
    assert "is deleted" in str(move.unrecorded)
    assert aliases_of(moved, "bot") == ("1", "2")
    roll_back(moved, "bot", reason="and back")  # records that cannot be written are in no rollback's way
    assert aliases_of(moved, "bot") == ("2", "1")
    records = history(moved, "bot")
    assert [(record.kind, record.run_id) for record in records] == [("rollback", None), ("rollback", None)]
    with pytest.raises(MoveError, match="still cannot be written"):
        promote_version(moved, "bot", "3", evidence=evidence("2"))
    moved.restore_experiment(experiment)
    settled = settle(moved, "bot")
    assert (settled.how, settled.unrecorded) == ("recorded", None)
    assert [record.reason for record in moves_of(moved, "bot")[:2]] == ["and back", "now"]
    assert all(not key.startswith(UNRECORDED_TAG) for key in moved.get_registered_model("bot").tags)
    assert settle(moved, "bot") is None


def test_a_rollback_that_was_cut_off_is_finished_not_rolled_back_again(moved, workplace):
    calls = 0
    while aliases_of(moved, "bot") != ("1", "2"):  # until it dies after both aliases
        calls += 1
        assert run_killed(workplace.tracking_uri, calls, take_back, "bot")
        if aliases_of(moved, "bot") != ("1", "2"):
            with_intent = settle(moved, "bot")
            if aliases_of(moved, "bot") == ("1", "2"):
                assert with_intent.how == "finished"
                roll_back(moved, "bot")  # died between the two aliases: start anew
    assert INTENT_TAG in moved.get_registered_model("bot").tags
    move = roll_back(moved, "bot")
    assert "cut off after the alias had moved" in move.settled.text
    assert aliases_of(moved, "bot") == ("1", "2")
    assert roll_back(moved, "bot").settled is None
    assert aliases_of(moved, "bot") == ("2", "1")


class Away:
    """A client whose named call finds no server."""

    def __init__(self, client, call):
        self._client, self._call = client, call

    def __getattr__(self, name):
        if name != self._call:
            return getattr(self._client, name)

        def call(*arguments, **named):
            raise MlflowException("API request failed with exception HTTPConnectionPool")

        return call


@pytest.mark.fault
def test_a_registry_that_goes_away_within_a_move_is_told_and_the_next_call_settles(moved):
    with pytest.raises(TrackingError, match="call again when it answers"):
        roll_back(Away(moved, "set_registered_model_alias"), "bot")
    assert settle(moved, "bot").how == "dropped"
    assert aliases_of(moved, "bot") == ("2", "1")
    assert faults_after_settling(moved, "bot") == []


def test_an_intent_fits_into_a_tag_however_long_the_reasons_are(moved):
    long = MoveEvidence("promote", "d" * 64, "größer " * 1000, None, "2", "c" * 64, "a" * 64)
    with pytest.raises(TrackingError):
        promote_version(Away(moved, "set_registered_model_alias"), "bot", "3", evidence=long)
    text = moved.get_registered_model("bot").tags[INTENT_TAG]
    assert len(text) < 2500
    assert Intent.from_json(text).evidence.reason == ("größer " * 1000)[:1000]
    settle(moved, "bot")
    promote_version(moved, "bot", "3", evidence=long)
    assert history(moved, "bot")[0].reason.startswith("größer größer")


def test_an_intent_that_nobody_wrote_is_told_not_guessed(moved):
    moved.set_registered_model_tag("bot", INTENT_TAG, "{}")
    with pytest.raises(MoveError, match=r"'finetune\.move' of the registered model is not a move"):
        roll_back(moved, "bot")
    assert aliases_of(moved, "bot") == ("2", "1")


def test_a_move_cut_off_and_overtaken_by_hand_stands_as_the_hand_left_it(moved):
    with pytest.raises(TrackingError):
        roll_back(Away(moved, "set_registered_model_alias"), "bot")
    moved.set_registered_model_alias("bot", "champion", "3")
    assert settle(moved, "bot").how == "overtaken"
    newest, cut_off = history(moved, "bot")[:2]
    assert (newest.kind, newest.to_version) == ("unexplained", "3")
    assert (cut_off.kind, cut_off.is_moved) == ("rollback", False)


def test_a_decision_run_that_goes_after_the_move_gives_way_to_a_run_of_its_own(moved):
    run_id = moved.create_run(promotions_experiment(moved, "bot")).info.run_id
    with pytest.raises(TrackingError):
        promote_version(Away(moved, "delete_registered_model_tag"), "bot", "3", evidence=evidence("2", run_id=run_id))
    moved.delete_run(run_id)
    settled = settle(moved, "bot")
    assert settled.how == "finished"
    newest = history(moved, "bot")[0]
    assert newest.run_id not in (None, run_id)
    assert f"run {run_id} is gone" in newest.reason
