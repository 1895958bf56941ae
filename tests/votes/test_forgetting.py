"""Votes and traces of a person, of a session, of long ago are gone: in MLflow, on the disk, and they do not come back."""

from datetime import timedelta

import pytest
from votes_cast import NOON, vote

from mlflow_finetune_plugin.errors import VoteError
from mlflow_finetune_plugin.votes import Mirror, read_votes
from mlflow_finetune_plugin.votes.forgetting import Deleted, delete_older_than, forget_session, forget_voter
from mlflow_finetune_plugin.votes.traces import VoteTraces


def traces_left():
    traces = VoteTraces("bot")
    return traces.tracing.search_traces(locations=[traces.experiment()], include_spans=False)


@pytest.fixture
def cast(ledger):
    """Alice on turns 1 and 2, with a changed mind; Bob on turn 2 as well and on turn 3."""
    alice, bob = ledger.journal.voter("alice"), ledger.journal.voter("bob")
    for number, voter, choice in (
        (1, alice, "left"),
        (2, alice, "left"),
        (2, bob, "right"),
        (3, bob, "left"),
        (2, alice, "tie"),
    ):
        ledger.journal.cast(vote(number, choice, voter=voter, comment=f"words of {voter}"))
    Mirror(ledger.journal).flush()
    return ledger


def test_a_persons_votes_go_and_others_stay(cast):
    alice, bob = cast.journal.voter("alice"), cast.journal.voter("bob")
    assert forget_voter(cast.journal, "alice") == Deleted(votes=3, traces=2, feedback=4)
    assert {read.told.voter for read in read_votes("bot").votes} == {bob}
    assert len(traces_left()) == 4  # Bob's answers are still his
    assert f"words of {alice}".encode() not in (cast.journal.folder / "votes.jsonl").read_bytes()
    (cast.journal.folder / "mirrored.json").unlink()
    Mirror(cast.journal).flush()
    assert {read.told.voter for read in read_votes("bot").votes} == {bob}


def test_a_person_is_found_by_the_hash_that_mlflow_shows(cast):
    assert forget_voter(cast.journal, cast.journal.voter("bob")).votes == 2
    assert forget_voter(cast.journal, "bob") == Deleted(0, 0, 0)


def test_a_vote_that_was_not_mirrored_yet_is_forgotten_before_it_is(cast):
    cast.journal.cast(vote(9, voter=cast.journal.voter("alice")))
    forget_voter(cast.journal, "alice")
    assert Mirror(cast.journal).flush().mirrored == 0


def test_visitors_are_one_voter_to_forget(ledger):
    ledger.journal.cast(vote(1, voter=ledger.journal.voter(None)))
    Mirror(ledger.journal).flush()
    assert forget_voter(ledger.journal, "anonymous") == Deleted(1, 2, 0)


def test_a_session_goes_with_all_votes_on_its_turns(ledger):
    ledger.journal.cast(vote(1, voter="v-1"))
    ledger.journal.cast(vote(2, voter="v-2"))
    Mirror(ledger.journal).flush()
    assert forget_session(ledger.journal, "s-v-1") == Deleted(1, 2, 0)
    assert [read.told.session for read in read_votes("bot").votes] == ["s-v-2"]


def test_old_votes_go_by_their_age(ledger):
    for days in range(5):
        ledger.journal.cast(vote(days, cast_at=NOON - timedelta(days=days)))
    Mirror(ledger.journal).flush()
    deleted = delete_older_than(ledger.journal, 2.5, now_s=NOON.timestamp())
    assert deleted == Deleted(2, 4, 0)
    assert [read.told.turn_id for read in read_votes("bot").votes] == ["t-0", "t-1", "t-2"]
    assert [entry.vote.turn.turn_id for entry in ledger.journal.entries()] == ["t-0", "t-1", "t-2"]


def test_more_old_traces_than_one_request_deletes(ledger, monkeypatch):
    from mlflow_finetune_plugin.votes import forgetting

    monkeypatch.setattr(forgetting, "_BATCH", 3)
    for number in range(4):
        ledger.journal.cast(vote(number))
    Mirror(ledger.journal).flush()
    assert delete_older_than(ledger.journal, 0, now_s=NOON.timestamp()).traces == 8
    assert traces_left() == []


def test_nothing_to_forget_where_nobody_voted(ledger):
    assert forget_voter(ledger.journal, "alice") == Deleted(0, 0, 0)
    for act in (lambda: forget_voter(ledger.journal, " "), lambda: forget_session(ledger.journal, "")):
        with pytest.raises(VoteError, match="fix:"):
            act()
    for days in (-1, float("nan")):
        with pytest.raises(VoteError, match="no age"):
            delete_older_than(ledger.journal, days)
