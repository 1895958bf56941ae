"""The course of the gate's test, with capitals worked out by hand, and what it says in words."""

from datetime import UTC, datetime

import pytest

from gradio_app.standings.vote_path import vote_path
from mlflow_finetune_plugin.gate.criteria import judge_votes
from mlflow_finetune_plugin.gate.evidence import Votes
from mlflow_finetune_plugin.gate.policy import VotesPolicy
from mlflow_finetune_plugin.gate.votes import Vote

NOW = datetime(2026, 11, 1, tzinfo=UTC)
BY_VOTE = VotesPolicy(unit="vote", minimum=1, per_voter=1000)


def votes(said: str, voters: int = 1, number: int = 1) -> Votes:
    """``+`` for the candidate, ``-`` for the champion, ``=`` for a tie; the voters take turns."""
    choices = {"+": "candidate", "-": "champion", "=": "tie"}
    return Votes(tuple(Vote(f"v-{i % voters}", choices[one]) for i, one in enumerate(said)), number, read_at=NOW)


def test_the_evidence_is_the_gates_after_every_decisive_vote():
    """The stake s is Beta(2, 2): E s = 1/2, E s^2 = 3/10; two wins give E (1 + s)^2, a win and a loss E (1 - s^2)."""
    path = vote_path(votes("+=+-"), "2", "1", policy=BY_VOTE)
    assert path.test.evidence_for == pytest.approx([1, 1.5, 2.3, 1 + 0.5 - 0.3 - 0.2], abs=2e-3)
    assert path.test.evidence_against[:3] == pytest.approx([1, 0.5, 0.3], abs=2e-3)
    assert vote_path(votes("+-"), "2", "1", policy=BY_VOTE).test.evidence_against[2] == pytest.approx(0.7, abs=2e-3)


@pytest.mark.parametrize(("number", "boundary"), [(1, 32.9), (2, 131.6)])
def test_pairs_share_one_alpha(number, boundary):
    """1 / alpha of 5 %, times pi^2 / 6, times the number squared."""
    path = vote_path(votes("+", number=number), "2", "1", policy=BY_VOTE)
    assert path.test.boundary == pytest.approx(boundary, abs=0.05)


def test_what_is_decided_is_said_with_the_vote_that_decided_it():
    path = vote_path(votes("+" * 12), "2", "base", policy=BY_VOTE)
    assert path.test.outcome == "better"
    assert (
        path.test.evidence_for[path.test.decided_at]
        >= path.test.boundary
        > path.test.evidence_for[path.test.decided_at - 1]
    )
    assert (
        path.sentence
        == f"Decided: version 2 is preferred to the base, shown after {path.test.decided_at} decisive votes."
    )
    lost = vote_path(votes("-" * 12), "2", "1", policy=BY_VOTE)
    assert (lost.test.outcome, lost.test.decided_at) == ("worse", path.test.decided_at)
    assert lost.sentence.startswith("Decided: version 1 is preferred to version 2, shown after")


@pytest.mark.parametrize("said", ["+", "+" * 4, "++-+-+", "+" * 12, "-" * 12, "=", ""])
@pytest.mark.parametrize("policy", [BY_VOTE, VotesPolicy(), VotesPolicy(minimum=3, per_voter=1, required=True)])
def test_the_path_says_what_the_gate_says(said, policy):
    cast = votes(said, voters=6)
    path = vote_path(cast, "2", "1", policy=policy)
    finding = judge_votes(policy, cast)
    assert path.test.outcome == {"pass": "better", "reject": "worse"}.get(finding.outcome, "undecided")
    assert path.test.still_needed == finding.still_needed
    if said:
        assert path.scores == finding.details["counted"]
        assert path.test.evidence_for[-1] == pytest.approx(finding.details["e_better"])


def test_undecided_says_how_many_more_would_likely_decide():
    path = vote_path(votes("+++-++"), "2", "1", policy=BY_VOTE)
    assert path.sentence == (
        f"Undecided: the evidence is {path.test.evidence_for[-1]:.3g}, and 32.9 decides; "
        f"about {path.test.still_needed} more decisive votes will decide, if they vote like those so far."
    )
    assert path.test.still_needed > 1
    tied = vote_path(votes("+-" * 200), "2", "1", policy=BY_VOTE)
    assert tied.sentence.endswith("decides; how many more decisive votes will decide cannot be estimated yet.")


def test_evidence_before_the_minimum_decides_nothing():
    path = vote_path(votes("+" * 12), "2", "1", policy=VotesPolicy(unit="vote", minimum=20, per_voter=1000))
    assert path.test.outcome == "undecided"
    assert path.sentence.endswith("about 8 more decisive votes will decide, if they vote like those so far.")


def test_open_voters_the_planned_look_and_shared_prompts_are_explained():
    path = vote_path(votes("++", voters=2), "2", "1", policy=VotesPolicy())
    assert (path.scores, path.test.open_voters) == (2, 2)
    assert path.notes == [
        "2 voters have cast fewer than 5 votes. Until they cast the others, or do not vote for 24 hours, their missing votes "
        "count against a decision.",
        "When the first 10 voters are finished, less evidence is enough to decide.",
    ]
    cast = tuple(Vote(f"v-{voter}", "candidate", str(prompt)) for voter in range(30) for prompt in range(5))
    shared = vote_path(Votes(cast, 1, read_at=NOW), "2", "1", policy=VotesPolicy(planned_voters=None))
    assert shared.outlook == "the voters would decide, but they share only 5 prompts: vote on more prompts"
    assert shared.notes == [
        "Voters share prompts. The first votes on the 5 prompts must show the same, because one prompt can win the votes of "
        "many people."
    ]
    open_voters = vote_path(votes("+" * 40, voters=10), "2", "1", policy=VotesPolicy(minimum=10))
    assert open_voters.test.outcome == "undecided"


def test_ties_alone_prefer_no_side():
    path = vote_path(votes("=="), "2", "1", policy=BY_VOTE)
    assert path.sentence == "Undecided: no vote prefers a side yet."
