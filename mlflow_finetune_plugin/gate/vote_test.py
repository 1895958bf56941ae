"""The test of people's votes: the evidence after every voter, two planned looks, and the decision. Pure.

A candidate is better when betting shows it at any look, or a planned look does. They share the policy's alpha, so together
they err with a probability of at most alpha.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from mlflow_finetune_plugin.evaluation.results import Interval
from mlflow_finetune_plugin.gate.evidence import Votes
from mlflow_finetune_plugin.gate.policy import LEAST_PLANNED_VOTERS, VotesPolicy
from mlflow_finetune_plugin.gate.statistics.error_budget import discovery_alpha
from mlflow_finetune_plugin.gate.statistics.planned_look import planned_look_p
from mlflow_finetune_plugin.gate.statistics.sequential import (
    VOTE_STAKES,
    VOTER_STAKES,
    betting_test,
    capitals,
    confidence_sequence,
    scores_still_needed,
)
from mlflow_finetune_plugin.gate.votes import (
    VoterVotes,
    decisive_scores,
    prompt_scores,
    voter_bounds,
    votes_by_voter,
)

Array = NDArray[np.float64]
Outcome = Literal["better", "worse", "undecided"]

FIRST_LOOK, MAIN_LOOK = 0.15, 0.5
"""The parts of alpha that the looks at the least and at the planned number of voters spend; the rest is for betting.

The first look decides where nearly all agree, the main look where 65 % do; betting needs more voters, and may be read at any
time. ``benchmarks/gate_audit.py`` measures them together.
"""


@dataclass(frozen=True)
class PlannedLook:
    """A look at the first ``voters`` voters: both p-values, or None while one of them is open or missing.

    ``alpha`` is its part of the error. ``p_better`` is the p-value of "not preferred", ``p_worse`` of "not less preferred".
    """

    voters: int
    alpha: float
    p_better: float | None = None
    p_worse: float | None = None

    @property
    def outcome(self) -> Outcome:
        if self.p_better is not None and self.p_better <= self.alpha:
            return "better"
        return "worse" if self.p_worse is not None and self.p_worse <= self.alpha else "undecided"


@dataclass(frozen=True)
class VoteTest:
    """The state of the test.

    Args:
        outcome: The decision.
        decided_at: The number of voters (or decisive votes) that showed it; None while undecided.
        alpha: The error that the pair may spend, for better and for worse each.
        boundary: The evidence that decides.
        mean: The mean score with its confidence sequence. While voters are open, the interval allows for their missing votes.
        counted: The number of scores: voters who have begun, or decisive votes.
        evidence_for: The evidence that the candidate is better before the first score and after each, (counted + 1,).
        evidence_against: The evidence that it is worse, likewise.
        prompts: The number of different prompts, if voters share some; None if no two voters do.
        prompt_evidence_for: The highest evidence over prompts so far; None if no two voters share a prompt.
        prompt_evidence_against: Likewise for worse.
        planned_looks: Those that the policy plans, with fewer voters first.
        still_needed: An estimate of how many more scores decide, if they are like those so far.
        open_voters: Voters whose next votes count. Until then, each missing vote counts for the side that is not shown.
        unfinished: Voters who were closed before their last vote.
        left_after_win: Those whose last vote was for the candidate.
        left_after_loss: Those whose last vote was for the champion. Where it differs a lot from ``left_after_win``
            although the score is even, voters stay or leave by what they prefer.
    """

    outcome: Outcome
    decided_at: int | None
    alpha: float
    boundary: float
    mean: Interval
    counted: int
    evidence_for: tuple[float, ...]
    evidence_against: tuple[float, ...]
    prompts: int | None = None
    prompt_evidence_for: float | None = None
    prompt_evidence_against: float | None = None
    planned_looks: tuple[PlannedLook, ...] = ()
    still_needed: int | None = None
    open_voters: int = 0
    unfinished: int = 0
    left_after_win: int = 0
    left_after_loss: int = 0

    @property
    def deciding_look(self) -> PlannedLook | None:
        """The planned look that decided; None while undecided, or where the evidence decided as early."""
        evidence = self.evidence_for if self.outcome == "better" else self.evidence_against
        if self.decided_at is None or evidence[self.decided_at] >= self.boundary:
            return None
        looks = (look for look in self.planned_looks if look.outcome == self.outcome)
        return next((look for look in looks if look.voters == self.decided_at), None)

    @property
    def lacks_prompts(self) -> bool:
        """Whether the voters would decide, and the prompts that they share are too few."""
        if self.prompt_evidence_for is None or self.prompt_evidence_against is None or self.outcome != "undecided":
            return False
        better = max(self.evidence_for) >= self.boundary > self.prompt_evidence_for
        return bool(better or max(self.evidence_against) >= self.boundary > self.prompt_evidence_against)


def run_vote_test(policy: VotesPolicy, evidence: Votes) -> VoteTest:
    """Test whether people prefer the candidate. See ``voter_bounds`` for the hypotheses.

    A decision "better" needs a mean score above 1/2 now, besides the evidence at some look; "worse" one below.
    """
    alpha = policy.alpha
    if evidence.number is not None:
        alpha = discovery_alpha(alpha, evidence.number, evidence.discoveries)
    return _by_voter(policy, evidence, alpha) if policy.unit == "voter" else _by_vote(policy, evidence, alpha)


def _by_vote(policy: VotesPolicy, evidence: Votes, alpha: float) -> VoteTest:
    scores = decisive_scores(evidence.votes, per_voter=policy.per_voter)
    test = betting_test(scores, VOTE_STAKES, alpha=alpha, minimum=policy.minimum)
    outcome, decided_at = _decision(test.better_at, test.worse_at, test.mean.value)
    return VoteTest(
        outcome=outcome,
        decided_at=decided_at,
        alpha=alpha,
        boundary=test.boundary,
        mean=test.mean,
        counted=len(scores),
        evidence_for=tuple(test.e_better.tolist()),
        evidence_against=tuple(test.e_worse.tolist()),
        still_needed=None
        if decided_at is not None
        else scores_still_needed(scores, VOTE_STAKES, alpha=alpha, minimum=policy.minimum),
    )


def _by_voter(policy: VotesPolicy, evidence: Votes, alpha: float) -> VoteTest:
    voters = votes_by_voter(
        evidence.votes,
        per_voter=policy.per_voter,
        closes_after=timedelta(hours=policy.closes_after_h),
        now=evidence.read_at,
    )
    looks = tuple(_planned_look(voters, planned, part * alpha) for planned, part in _plan(policy).items())
    betting_alpha = alpha - sum(look.alpha for look in looks)
    bounds = voter_bounds(voters)
    evidence_for = np.minimum(*(capitals(x, VOTER_STAKES)[0] for x in (bounds.low_shrunk, bounds.low_plain)))
    evidence_against = np.minimum(*(capitals(x, VOTER_STAKES)[1] for x in (bounds.high_shrunk, bounds.high_plain)))
    by_prompt = prompt_scores(voters)
    prompt_for = prompt_against = None
    if by_prompt is not None:
        prompt_for, prompt_against = (float(capital.max()) for capital in capitals(by_prompt, VOTE_STAKES))
    boundary = 1 / betting_alpha
    better_at = _first_at(evidence_for, boundary, policy.minimum) if _suffices(prompt_for, boundary) else None
    worse_at = _first_at(evidence_against, boundary, policy.minimum) if _suffices(prompt_against, boundary) else None
    better_at = _earliest(better_at, *(look.voters for look in looks if look.outcome == "better"))
    worse_at = _earliest(worse_at, *(look.voters for look in looks if look.outcome == "worse"))
    shrunk = np.array([voter.shrunk for voter in voters])
    mean = _mean(shrunk, bounds.low_shrunk, bounds.high_shrunk, betting_alpha)
    outcome, decided_at = _decision(better_at, worse_at, mean.value)
    left = [voter.votes[-1].score for voter in voters if not voter.is_open and len(voter.votes) < policy.per_voter]
    return VoteTest(
        outcome=outcome,
        decided_at=decided_at,
        alpha=alpha,
        boundary=boundary,
        mean=mean,
        counted=len(voters),
        evidence_for=tuple(evidence_for.tolist()),
        evidence_against=tuple(evidence_against.tolist()),
        prompts=None if by_prompt is None else len(by_prompt),
        prompt_evidence_for=prompt_for,
        prompt_evidence_against=prompt_against,
        planned_looks=looks,
        still_needed=None if decided_at is not None else _voters_still_needed(voters, policy, betting_alpha, looks),
        open_voters=sum(voter.is_open for voter in voters),
        unfinished=len(left),
        left_after_win=left.count(1.0),
        left_after_loss=left.count(0.0),
    )


def _plan(policy: VotesPolicy) -> dict[int, float]:
    """Return the part of alpha that each planned look spends, by its number of voters."""
    if policy.planned_voters is None:
        return {}
    if policy.planned_voters <= policy.minimum:
        return {policy.minimum: MAIN_LOOK}
    if policy.minimum < LEAST_PLANNED_VOTERS:
        return {policy.planned_voters: MAIN_LOOK}
    return {policy.minimum: FIRST_LOOK, policy.planned_voters: MAIN_LOOK}


def _planned_look(voters: Sequence[VoterVotes], planned: int, alpha: float) -> PlannedLook:
    first = voters[:planned]
    if len(first) < planned or any(voter.is_open for voter in first):
        return PlannedLook(planned, alpha)
    votes = [vote for voter in first for vote in voter.votes]
    who = [vote.voter for vote in votes]
    prompts = None
    if prompt_scores(first) is not None:
        prompts = [f"vote {i}" if vote.prompt is None else vote.prompt for i, vote in enumerate(votes)]
    shrunk = [(vote.score - 0.5) / voter.per_voter / planned for voter in first for vote in voter.votes]
    plain = [(vote.score - 0.5) / len(voter.votes) / planned for voter in first for vote in voter.votes]
    better, worse = zip(*(planned_look_p(scores, who, prompts) for scores in (shrunk, plain)), strict=True)
    return PlannedLook(planned, alpha, max(better), max(worse))


def _voters_still_needed(
    voters: Sequence[VoterVotes], policy: VotesPolicy, alpha: float, looks: Sequence[PlannedLook]
) -> int | None:
    """Estimate how many more voters decide, if all finish and vote like those who have; None before one has."""
    finished = np.array([voter.shrunk for voter in voters if not voter.is_open])
    needed = scores_still_needed(finished, VOTER_STAKES, alpha=alpha, minimum=policy.minimum)
    in_all = None if needed is None else len(finished) + needed
    for look in looks:
        if look.p_better is not None or len(finished) < 2:
            continue
        error = float(finished.std(ddof=1)) / math.sqrt(look.voters)
        if abs(float(finished.mean()) - 0.5) >= float(stdtrit(look.voters - 1, 1 - look.alpha)) * error:
            in_all = _earliest(in_all, look.voters)
    return None if in_all is None else max(in_all - len(voters), 0)


def _mean(scores: Array, lowest: Array, highest: Array, alpha: float) -> Interval:
    low = confidence_sequence(lowest, VOTER_STAKES, alpha=alpha)
    high = confidence_sequence(highest, VOTER_STAKES, alpha=alpha)
    return Interval(float(scores.mean()) if len(scores) else 0.5, low.low, high.high, low.method)


def _decision(better_at: int | None, worse_at: int | None, mean: float) -> tuple[Outcome, int | None]:
    if worse_at is not None and mean < 0.5:
        return "worse", worse_at
    if better_at is not None and mean > 0.5:
        return "better", better_at
    return "undecided", None


def _earliest(*places: int | None) -> int | None:
    return min((place for place in places if place is not None), default=None)


def _suffices(prompt_evidence: float | None, boundary: float) -> bool:
    return prompt_evidence is None or prompt_evidence >= boundary


def _first_at(evidence: Array, boundary: float, minimum: int) -> int | None:
    reached = np.flatnonzero(evidence[minimum:] >= boundary)
    return int(reached[0]) + minimum if len(reached) else None
