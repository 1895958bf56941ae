"""What is read from MLflow: each vote once, in order, and only what two true receipts stand behind."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import wait_for
from mlflow.entities import AssessmentSource, Feedback
from votes_cast import NOON, digest, receipt, vote

from mlflow_finetune_plugin.votes import Journal, Mirror, read_votes
from mlflow_finetune_plugin.votes.mlflow import reading as reasons
from mlflow_finetune_plugin.votes.mlflow import traces
from mlflow_finetune_plugin.votes.mlflow.reading import gate_votes, read_texts
from mlflow_finetune_plugin.votes.mlflow.traces import VoteTraces

pytestmark = pytest.mark.store


def mirrored(ledger, *votes):
    for cast in votes:
        ledger.journal.cast(cast)
    Mirror(ledger.journal).flush()
    return read_votes("bot")


def with_receipt(cast, position, changed):
    left, right = cast.sides
    if position == "left":
        return replace(cast, sides=(replace(left, receipt=changed), right))
    return replace(cast, sides=(left, replace(right, receipt=changed)))


def test_nobody_voted(ledger):
    reading = read_votes("bot")
    assert reading.votes == ()
    assert gate_votes(reading, "2", "1") == ()


def test_gate_votes_name_the_winner_whatever_side_it_was_on(ledger):
    reading = mirrored(
        ledger,
        vote(1, "left", voter="v-1", left="1", right="2"),
        vote(2, "left", voter="v-2", left="2", right="1"),
        vote(3, "tie", voter="v-1"),
        vote(4, "both_bad", voter="v-2"),
    )
    votes = gate_votes(reading, "2", "1")
    assert [(vote.voter, vote.choice) for vote in votes] == [
        ("v-1", "champion"),
        ("v-2", "candidate"),
        ("v-1", "tie"),
        ("v-2", "both_bad"),
    ]
    assert {vote.cast_at for vote in votes} == {NOON}
    assert len({vote.prompt for vote in votes}) == 4


def test_order_is_that_of_the_journal_with_changes_at_their_first_place(ledger):
    ledger.journal.cast(vote(1, "left", cast_at=NOON.replace(year=2099)))
    ledger.journal.cast(vote(2, "left", cast_at=NOON))
    ledger.journal.cast(vote(3, "left", cast_at=NOON.replace(year=1999)))
    reading = mirrored(ledger, vote(1, "right", cast_at=NOON.replace(year=2000)))
    assert [(read.vote.turn_id, read.vote.choice) for read in reading.votes] == [
        ("t-1", "right"),
        ("t-2", "left"),
        ("t-3", "left"),
    ]


def test_two_hosts_journals_are_merged_and_each_keeps_its_order(ledger, tmp_path):
    other = Journal("bot", tmp_path / "other-host")
    for number, hour in ((1, 10), (2, 9), (3, 14)):
        ledger.journal.cast(vote(f"a{number}", cast_at=NOON.replace(hour=hour)))
    for number, hour in ((1, 11), (2, 13)):
        other.cast(vote(f"b{number}", cast_at=NOON.replace(hour=hour)))
    Mirror(other).flush()
    Mirror(ledger.journal).flush()
    read = [vote.vote.turn_id for vote in read_votes("bot").votes]
    assert read == ["t-a1", "t-a2", "t-b1", "t-b2", "t-a3"]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("cast", "reason"),
    [
        (with_receipt(vote(1), "left", None), reasons.NO_RECEIPTS),
        (vote(1, left="2", right="2"), reasons.SAME_VERSION),
        (vote(1, left="3"), reasons.NO_VERSION),
        (with_receipt(vote(1), "right", receipt("2", "req-1-r", model="rival")), reasons.OTHER_MODEL),
        (with_receipt(vote(1), "right", replace(receipt("2", "r"), adapter_digest=digest("9"))), reasons.OTHER_DIGEST),
        (with_receipt(vote(1), "right", replace(receipt("2", "r"), base_digest="c" * 64)), reasons.OTHER_DIGEST),
        (
            with_receipt(vote(1), "left", replace(receipt("base", "r", model="tiny"), base_digest="c" * 64)),
            reasons.OTHER_BASE,
        ),
    ],
)
def test_votes_without_two_true_receipts_never_count(ledger, cast, reason):
    reading = mirrored(ledger, cast, vote(2))
    assert reading.not_counted == {reason: 1}
    assert [vote.turn_id for vote in reading.between("2", "1")] == ["t-2"]
    assert len(reading.votes) == 2


def test_votes_on_other_versions_are_not_among_those_of_a_pair_that_do_not_count(ledger):
    lacking = [with_receipt(vote(number, left=left), "right", None) for number, left in ((1, "1"), (2, "3"))]
    reading = mirrored(ledger, *lacking, vote(3))
    assert reading.not_counted_between("2", "1") == {reasons.NO_RECEIPTS: 1}
    assert reading.not_counted_between("5", "4") == {}
    assert reading.not_counted == {reasons.NO_RECEIPTS: 2}


def test_a_version_without_a_digest_in_the_registry_does_not_count(ledger):
    VoteTraces("bot").client.delete_model_version_tag("bot", "2", "finetune.adapter_digest")
    assert mirrored(ledger, vote(1)).not_counted == {reasons.NO_DIGEST: 1}


def test_votes_against_the_base_count_between_version_and_base(ledger):
    cast = with_receipt(vote(1, "right"), "left", receipt("base", "req-1-l", model="tiny-base"))
    reading = mirrored(ledger, cast)
    assert reading.not_counted == {}
    assert [(vote.voter, vote.choice) for vote in gate_votes(reading, "2", "base")] == [("v-1", "candidate")]
    assert reading.pairs() == {("2", "base"): 1}


def test_one_vote_per_voter_turn_and_pair(ledger):
    again = vote(2)
    regenerated = replace(again, turn=replace(again.turn, turn_id="t-1"))  # new answers, the same turn and versions
    replayed = replace(vote(1), turn=replace(vote(1).turn, turn_id="t-9"))  # the same answers as another turn
    reading = mirrored(ledger, vote(1), regenerated, replayed, vote(1, voter="v-2"))
    assert reading.not_counted == {reasons.SAME_TURN: 1, reasons.SAME_ANSWERS: 1}
    assert [vote.voter for vote in reading.between("1", "2")] == ["v-1", "v-2"]


def test_judges_are_never_pooled_with_people(ledger):
    reading = mirrored(
        ledger, vote(1), vote(1, voter="judge:big", kind="judge"), vote(2, voter="judge:big", kind="judge")
    )
    assert len(gate_votes(reading, "2", "1")) == 1
    assert len(reading.between("2", "1", "judge")) == 2
    kinds = {
        (feedback.source.source_type, feedback.source.source_id)
        for trace in VoteTraces("bot").tracing.search_traces(locations=[VoteTraces("bot").experiment()])
        for feedback in trace.info.assessments
    }
    assert kinds == {("HUMAN", "v-1"), ("LLM_JUDGE", "judge:big")}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "forged",
    [
        {"finetune.voter": "v-2"},
        {"finetune.choice": "right"},
        {"finetune.turn_id": "t-2"},
        {"finetune.kind": "judge"},
        {"finetune.left": "{}"},
        {"finetune.sequence": "first"},
    ],
)
def test_feedback_that_contradicts_itself_is_told_and_not_counted(ledger, forged):
    mirrored(ledger, vote(1))
    traces = VoteTraces("bot")
    left = read_votes("bot").votes[0].vote.left.trace_id
    trace = traces.tracing.get_trace(left)
    (true,) = trace.info.assessments
    changed = Feedback(
        name=true.name,
        value=true.feedback.value,
        source=AssessmentSource("HUMAN", "v-1"),
        metadata={**true.metadata, **forged},
    )
    traces.tracing.log_assessment(trace.info.trace_id, changed)
    traces.tracing.log_assessment(trace.info.trace_id, Feedback(name=true.name, value="won"))
    reading = read_votes("bot")
    assert reading.not_counted == {reasons.UNREADABLE: 2}
    assert len(gate_votes(reading, "2", "1")) == 1


def test_contradictory_copies_of_a_vote_do_not_count(ledger, tmp_path):
    other = tmp_path / "copied-to-another-host"
    shutil.copytree(ledger.journal.folder, other)  # the same salt and id: two journals that think they are one
    Journal("bot", other).cast(vote(1, "right"))
    Mirror(Journal("bot", other)).flush()
    assert mirrored(ledger, vote(1, "left")).not_counted == {reasons.CONTRADICTORY: 1}


def test_an_answer_shown_left_here_and_right_there_hides_no_vote(ledger):
    first, other = vote(1, "left"), vote(2, "left")
    left = replace(first.sides[0], position="right")
    shared = replace(first, sides=(other.sides[0], left))  # the first's left answer, right of another one
    reading = mirrored(ledger, first, shared, vote(1, "right", voter="v-2"))
    assert len(reading.votes) == 3
    swapped = (replace(first.sides[1], position="left"), replace(first.sides[0], position="right"))
    assert len(mirrored(ledger, replace(first, voter="v-3", sides=swapped)).votes) == 4


def test_texts_are_read_back(ledger):
    reading = mirrored(ledger, vote(1, answers=("één", "two\nlines")))
    (read,) = reading.votes
    texts = read_texts("bot", [read.vote])
    assert texts[read.vote.left.trace_id].answer == "één"
    assert texts[read.vote.right.trace_id].answer == "two\nlines"
    assert texts[read.vote.left.trace_id].messages == ({"role": "user", "content": "question 1"},)


def test_more_votes_than_a_page(ledger, monkeypatch):
    monkeypatch.setattr(traces, "_PAGE", 3)
    reading = mirrored(ledger, *(vote(number) for number in range(11)))
    assert len(reading.votes) == 11
    assert reading.copies == 0


def test_any_host_reads_from_a_server(tmp_path, server):
    from votes_cast import register_versions

    register_versions(server.uri)
    journal = Journal("bot", Path(tmp_path / "votes"))
    for number in range(5):
        journal.cast(vote(number, comment="ünïcode"))
    mirror = Mirror(journal, server.uri)
    mirror.start()
    wait_for(lambda: mirror.pending == 0, 60, "votes in MLflow")
    mirror.stop()
    reading = read_votes("bot", server.uri)
    assert [vote.vote.comment for vote in reading.votes] == ["ünïcode"] * 5
    assert reading.not_counted == {}
    texts = read_texts("bot", [vote.vote for vote in reading.votes], server.uri)
    assert len(texts) == 10


def test_a_prompt_set_is_read_from_mlflow_beside_votes_without_one(ledger):
    reading = mirrored(ledger, vote(1, prompt_set="greetings"), vote(2))
    assert [read.vote.prompt_set for read in reading.votes] == ["greetings", None]
    assert [read.fault for read in reading.votes] == [None, None]
