"""Follow the gate's test over the votes on two versions: the evidence after every score, and the decision. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mlflow_finetune_plugin.gate.criteria import judge_votes
from mlflow_finetune_plugin.gate.evidence import Votes
from mlflow_finetune_plugin.gate.policy import VotesPolicy
from mlflow_finetune_plugin.gate.statistics.error_budget import candidate_alpha
from mlflow_finetune_plugin.gate.statistics.sequential import VOTE_STAKES, VOTER_STAKES, betting_test
from mlflow_finetune_plugin.gate.votes import PATIENCE_VOTERS, Vote, decisive_scores, voter_scores
from mlflow_finetune_plugin.store.names import BASE

Outcome = Literal["better", "worse", "undecided"]


@dataclass(frozen=True)
class VotePath:
    """The whole course of the test by which ``gate.criteria.judge_votes`` decides.

    ``evidence_for`` and ``evidence_against`` are the capitals of the bets that the candidate is better, and worse,
    before the first and after every score. The first to reach ``boundary``, not before ``minimum`` scores, decides;
    ``decided_at`` is the number of scores by then. A score is of one ``unit``. ``waiting`` voters have begun and do not
    count yet; each counts after ``per_voter`` votes. ``still_needed`` is the gate's estimate of how many more scores
    like these decide, None without one.
    """

    candidate: str
    champion: str
    unit: Literal["voter", "vote"]
    evidence_for: tuple[float, ...]
    evidence_against: tuple[float, ...]
    boundary: float
    minimum: int
    outcome: Outcome
    decided_at: int | None
    still_needed: int | None
    waiting: int
    per_voter: int
    pair_number: int

    @property
    def scores(self) -> int:
        return len(self.evidence_for) - 1

    @property
    def sentence(self) -> str:
        """Return the state of the test in one sentence."""
        if self.outcome != "undecided":
            won, lost = (self.candidate, self.champion) if self.outcome == "better" else (self.champion, self.candidate)
            at = _count(self.decided_at or 0, self.unit_name)
            return f"Decided: {version_name(won)} is preferred to {version_name(lost)}, shown after {at}."
        if not self.scores:
            return f"Undecided: {self.waiting_for}." if self.waiting else "Undecided: no vote prefers a side yet."
        highest = max(self.evidence_for[-1], self.evidence_against[-1])
        return f"Undecided: the evidence is {highest:.3g}, and {self.boundary:.3g} decides; {self.outlook}."

    @property
    def outlook(self) -> str:
        """Return what a decision still needs. The number is the gate's own estimate; without one the text says so."""
        if not self.scores and self.waiting:
            return f"how many more voters will decide cannot be estimated yet: {self.waiting_for}"
        if self.still_needed is None:
            return f"how many more {self.unit_name}s will decide cannot be estimated yet"
        if self.still_needed == 0:  # The evidence suffices; the policy's minimum of scores is missing.
            missing = _count(max(self.minimum - self.scores, 1), self.unit_name, "more ")
            return f"{missing} will decide: the policy needs at least {self.minimum:,}"
        return f"about {_count(self.still_needed, self.unit_name, 'more ')} will decide, if they vote like those so far"

    @property
    def unit_name(self) -> str:
        return "voter" if self.unit == "voter" else "decisive vote"

    @property
    def waiting_for(self) -> str:
        """Return when voters who have begun will count: a voter's score must not change once it counts."""
        who = "1 voter counts" if self.waiting == 1 else f"{self.waiting:,} voters count"
        return f"{who} after {self.per_voter} votes each, or when {PATIENCE_VOTERS} more people have begun"


def vote_path(
    votes: Sequence[Vote], candidate: str, champion: str, *, policy: VotesPolicy, pair_number: int = 1
) -> VotePath:
    """Return the path.

    Args:
        votes: as ``votes.gate_votes`` returns them.
        candidate: version of the candidate.
        champion: version of the champion.
        policy: the terms of the test.
        pair_number: as ``Reading.pair_number``; all pairs share one alpha.
    """
    alpha = candidate_alpha(policy.alpha, pair_number)
    waiting = 0
    if policy.unit == "voter":
        scores_by_voter = voter_scores(votes, per_voter=policy.per_voter)
        scores, stakes, waiting = scores_by_voter.scores, VOTER_STAKES, scores_by_voter.waiting
    else:
        scores, stakes = decisive_scores(votes, per_voter=policy.per_voter), VOTE_STAKES
    test = betting_test(scores, stakes, alpha=alpha, minimum=policy.minimum)
    finding = judge_votes(policy, Votes(tuple(votes), pair_number))
    outcomes: dict[str, Outcome] = {"pass": "better", "reject": "worse"}
    return VotePath(
        candidate=candidate,
        champion=champion,
        unit=policy.unit,
        evidence_for=tuple(float(value) for value in test.e_better),
        evidence_against=tuple(float(value) for value in test.e_worse),
        boundary=test.boundary,
        minimum=policy.minimum,
        outcome=outcomes.get(finding.outcome, "undecided"),
        decided_at=test.worse_at if finding.outcome == "reject" else test.better_at,
        still_needed=finding.still_needed,
        waiting=waiting,
        per_voter=policy.per_voter,
        pair_number=pair_number,
    )


def version_name(version: str) -> str:
    """Return a version's name in a sentence: ``version 3``, ``the base``."""
    return "the base" if version == BASE else f"version {version}"


def _count(number: int, noun: str, more: str = "") -> str:
    return f"{number:,} {more}{noun}" if number == 1 else f"{number:,} {more}{noun}s"
