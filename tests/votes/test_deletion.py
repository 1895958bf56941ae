"""Votes and turns of a person, of a session, of long ago are gone: in MLflow, on the disk, and they do not come back."""

import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import votes_cast
from mlflow.tracing.client import TracingClient
from votes_cast import NOON, NOON_MS, spoken, vote

from mlflow_finetune_plugin.errors import VoteError
from mlflow_finetune_plugin.votes import Mirror, read_votes
from mlflow_finetune_plugin.votes.deletion import (
    Deleted,
    delete_older_than,
    delete_unvoted_older_than,
    forget_session,
    forget_voter,
)
from mlflow_finetune_plugin.votes.mlflow.mirror import FlushResult
from mlflow_finetune_plugin.votes.mlflow.reading import read_texts
from mlflow_finetune_plugin.votes.mlflow.traces import VoteTraces
from mlflow_finetune_plugin.votes.mlflow.turn_log import TurnLog

pytestmark = pytest.mark.store


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
    assert {read.vote.voter for read in read_votes("bot").votes} == {bob}
    assert len(traces_left()) == 4  # Bob's answers are still his
    assert f"words of {alice}".encode() not in (cast.journal.folder / "votes.jsonl").read_bytes()
    (cast.journal.folder / "mirrored.json").unlink()
    Mirror(cast.journal).flush()
    assert {read.vote.voter for read in read_votes("bot").votes} == {bob}


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
    assert [read.vote.session for read in read_votes("bot").votes] == ["s-v-2"]


def test_old_votes_go_by_their_age(ledger):
    for days in range(5):
        ledger.journal.cast(vote(days, cast_at=NOON - timedelta(days=days)))
    Mirror(ledger.journal).flush()
    deleted = delete_older_than(ledger.journal, 2.5, now_s=NOON.timestamp())
    assert deleted == Deleted(2, 4, 0)
    assert [read.vote.turn_id for read in read_votes("bot").votes] == ["t-0", "t-1", "t-2"]
    assert [entry.vote.turn.turn_id for entry in ledger.journal.entries()] == ["t-0", "t-1", "t-2"]


def test_more_old_traces_than_one_request_deletes(ledger, monkeypatch):
    from mlflow_finetune_plugin.votes import deletion

    monkeypatch.setattr(deletion, "_BATCH", 3)
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
    assert delete_unvoted_older_than(ledger.journal, 0) == Deleted(0, 0, 0)
    for days in (-1, float("nan")):
        with pytest.raises(VoteError, match="not a valid age"):
            delete_older_than(ledger.journal, days)
        with pytest.raises(VoteError, match="not a valid age"):
            delete_unvoted_older_than(ledger.journal, days)


# turns that nobody voted on -------------------------------------------------------------------------------------------


def noted(ledger, *casts):
    """Turns as the playground writes them, of the persons who may vote on them later."""
    log = TurnLog(ledger.journal)
    log.start()
    for cast in casts:
        log.note(cast.turn, spoken(cast), cast.voter)
    assert log.flush(60)
    assert log.stop()


def turns_left():
    return sorted({trace.info.tags["finetune.turn_id"] for trace in traces_left()})


def test_a_persons_turns_go_with_their_votes_and_others_turns_stay(ledger):
    alice, bob = ledger.journal.voter("alice"), ledger.journal.voter("bob")
    noted(ledger, *(vote(number, voter=alice) for number in (1, 2, 3)), vote(4, voter=bob))
    ledger.journal.cast(vote(1, voter=alice))
    ledger.journal.cast(vote(2, voter=bob))  # on Alice's turn, shown to him
    Mirror(ledger.journal).flush()
    assert forget_voter(ledger.journal, "alice") == Deleted(votes=1, traces=4, feedback=0)
    assert turns_left() == ["t-2", "t-4"]
    users = {
        trace.info.tags["finetune.turn_id"]: trace.info.trace_metadata["mlflow.trace.user"] for trace in traces_left()
    }
    assert users == {"t-2": "forgotten", "t-4": bob}
    kept = [trace.info for trace in traces_left() if trace.info.tags["finetune.turn_id"] == "t-2"]
    assert {info.request_time for info in kept} == {NOON_MS - 60_000}
    assert sorted(feedback.value for info in kept for feedback in info.assessments) == ["lost", "won"]


def test_a_sessions_turns_go_whether_voted_on_or_not(ledger):
    noted(ledger, vote(1, voter="v-1"), vote(2, voter="v-1"), vote(3, voter="v-2"))
    ledger.journal.cast(vote(1, voter="v-1"))
    Mirror(ledger.journal).flush()
    assert forget_session(ledger.journal, "s-v-1") == Deleted(1, 4, 0)
    assert turns_left() == ["t-3"]


def test_a_session_with_a_name_longer_than_mlflow_takes_is_no_other(ledger):
    noted(ledger, vote(1, voter="v" * 190 + "a" * 10), vote(2, voter="v" * 190 + "b" * 10))
    assert forget_session(ledger.journal, "s-" + "v" * 190 + "a" * 10).traces == 2
    assert turns_left() == ["t-2"]


@pytest.mark.parametrize("forget", ["voter", "session", "age"])
def test_what_waits_in_memory_is_forgotten_too(ledger, forget):
    alice = ledger.journal.voter("alice")
    log = TurnLog(ledger.journal)
    log.note(vote(1, voter=alice).turn, spoken(vote(1)), alice)
    log.note(vote(2, voter="v-2").turn, spoken(vote(2)), "v-2")
    if forget == "voter":
        forget_voter(ledger.journal, "alice")
    elif forget == "session":
        forget_session(ledger.journal, f"s-{alice}")
    else:
        delete_older_than(ledger.journal, 0, now_s=NOON.timestamp() - 60)
    later = [replace(answer, started_at_ms=NOON_MS, ended_at_ms=NOON_MS) for answer in spoken(vote(3))]
    log.note(vote(3, voter=alice).turn, later, alice)  # she comes back
    log.start()
    assert log.flush(60)
    log.stop()
    assert turns_left() == (["t-3"] if forget == "age" else ["t-2", "t-3"])
    told = (ledger.journal.folder / "forgotten.jsonl").read_text()
    assert alice not in told
    assert "alice" not in told


HOLDING = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from votes_cast import spoken, vote
from mlflow_finetune_plugin.votes import Journal
from mlflow_finetune_plugin.votes.mlflow.turn_log import TurnLog
journal = Journal("bot", Path(sys.argv[1]))
log = TurnLog(journal, sys.argv[2])
for number, login in enumerate(("alice", "bob")):
    log.note(vote(number).turn, spoken(vote(number)), journal.voter(login))
print("noted", flush=True)
sys.stdin.readline()
log.start()
sys.exit(not log.flush(60))
"""


@pytest.mark.process
def test_what_another_process_holds_in_memory_is_forgotten_too(ledger):
    places = [str(ledger.journal.folder), ledger.uri, str(Path(votes_cast.__file__).parent)]
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, *places], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as playground:
        assert playground.stdout.readline() == "noted\n"
        forget_voter(ledger.journal, "alice")
        playground.communicate("write\n")
    assert playground.returncode == 0
    assert turns_left() == ["t-1"]


def test_a_torn_tombstone_forgets_rather_too_much(ledger):
    log = TurnLog(ledger.journal)
    log.note(vote(1).turn, spoken(vote(1)), "v-1")
    with (ledger.journal.folder / "forgotten.jsonl").open("a") as file:
        file.write('{"voter": "12')
    log.note(vote(2).turn, spoken(vote(2)), "v-2")
    forget_voter(ledger.journal, "somebody else")
    log.start()
    assert log.flush(60)
    log.stop()
    assert turns_left() == ["t-2"]


def test_turns_nobody_voted_on_go_by_their_age_and_the_others_stay(ledger):
    noted(ledger, vote("old"), vote("voted"), vote("awaited"), vote("assessed"))
    log = TurnLog(ledger.journal)
    young = vote("young")
    log.note(young.turn, [type(one)(one.side, NOON_MS, NOON_MS + 1) for one in spoken(young)])
    log.start()
    log.flush(60)
    log.stop()
    ledger.journal.cast(vote("voted"))
    Mirror(ledger.journal).flush()
    ledger.journal.cast(vote("awaited"))  # not in MLflow yet
    traces = VoteTraces("bot")
    for trace in traces_left():
        if trace.info.tags["finetune.turn_id"] == "t-assessed":
            traces.tracing.log_assessment(trace.info.trace_id, assessed())
    assert delete_unvoted_older_than(ledger.journal, 1, now_s=NOON.timestamp() + 86_390) == Deleted(0, 2, 0)
    assert turns_left() == ["t-assessed", "t-awaited", "t-voted", "t-young"]
    assert len(read_votes("bot").votes) == 1


def assessed():
    from mlflow.entities import AssessmentSource, Feedback

    return Feedback(name="tone", value="rude", source=AssessmentSource("HUMAN", "reviewer"))


def test_a_vote_on_a_turn_that_is_deleted_already_has_its_traces_made_again(ledger):
    cast = vote(1)
    noted(ledger, cast)
    ids = [trace.info.trace_id for trace in traces_left()]
    assert delete_unvoted_older_than(ledger.journal, 0).traces == 2
    sides = tuple(
        replace(side, trace_id=answer.trace_id(cast.turn))
        for side, answer in zip(cast.sides, spoken(cast), strict=True)
    )
    ledger.journal.cast(replace(cast, sides=sides))
    Mirror(ledger.journal).flush()
    (read,) = read_votes("bot").votes
    assert sorted([read.vote.left.trace_id, read.vote.right.trace_id]) == sorted(ids)
    texts = read_texts("bot", [read.vote])
    assert {text.answer for text in texts.values()} == {"a short answer", "another, longer answer"}


def test_an_old_turn_with_a_young_vote_stays(ledger):
    noted(ledger, vote(1), vote(2))
    ledger.journal.cast(vote(1, cast_at=NOON + timedelta(days=3)))
    Mirror(ledger.journal).flush()
    assert delete_older_than(ledger.journal, 1, now_s=NOON.timestamp() + 2 * 86_400) == Deleted(0, 2, 0)
    assert turns_left() == ["t-1"]
    assert len(read_votes("bot").votes) == 1


def test_a_trace_that_another_host_deletes_under_a_vote_is_made_again(ledger, monkeypatch):
    noted(ledger, vote(1))
    ledger.journal.cast(vote(1))
    log_assessment, deleted = TracingClient.log_assessment, []

    def delete_first(self, trace_id, feedback):
        if not deleted:
            deleted.append(VoteTraces("bot").client.delete_traces(VoteTraces("bot").experiment(), trace_ids=[trace_id]))
        return log_assessment(self, trace_id, feedback)

    monkeypatch.setattr(TracingClient, "log_assessment", delete_first)
    assert Mirror(ledger.journal).flush() == FlushResult(mirrored=1, refused=0)
    assert deleted == [1]
    (read,) = read_votes("bot").votes
    assert read.vote.choice == "left"
    assert len(read_texts("bot", [read.vote])) == 2
