"""People's votes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import numpy as np

from gate_scenarios.scenario import Rng, Trial, error, outside, power
from mlflow_finetune_plugin.gate.criteria import judge_votes
from mlflow_finetune_plugin.gate.evidence import Votes
from mlflow_finetune_plugin.gate.policy import VotesPolicy
from mlflow_finetune_plugin.gate.votes import Vote

Cast = list[tuple[int, bool, int | None]]
"""(voter, whether the candidate won, prompt) of each vote, in order."""
Draw = Callable[[Rng], Cast]
Shares = Callable[[Rng, int], np.ndarray]

T0 = datetime(2026, 1, 1, tzinfo=UTC)
HAS_PROMPTS = "prompt" in inspect.signature(Vote).parameters
LOOKS = 3
FIRST_PAIR = 0.05 * 6 / math.pi**2
POLICY = VotesPolicy(required=True)
BY_VOTE = VotesPolicy(unit="vote", required=True)
EIGHT_POLICIES = [
    VotesPolicy(required=True, per_voter=per_voter, unit=unit)
    for unit in ("voter", "vote")
    for per_voter in (5, 3, 2, 1)
]


def in_turns(voters: int, each: int, share: Shares, *, at_once: bool = False) -> Draw:
    """Voters whose chances of preferring the candidate are ``share``, one after another or all at once."""

    def cast(rng: Rng) -> Cast:
        tastes = share(rng, voters)
        turns = (
            [(v, i) for i in range(each) for v in range(voters)]
            if at_once
            else [(v, i) for v in range(voters) for i in range(each)]
        )
        return [(v, bool(rng.random() < tastes[v]), None) for v, _ in turns]

    return cast


def on_prompts(voters: int, each: int, prompts: int, effect: Shares) -> Draw:
    """Voters who share prompts; ``effect`` is the chance that the candidate wins on each prompt."""

    def cast(rng: Rng) -> Cast:
        shares = effect(rng, prompts)
        return [(v, bool(rng.random() < shares[p]), p) for v in range(voters) for p in rng.integers(prompts, size=each)]

    return cast


def busy(rng: Rng) -> Cast:
    """Half of the voters cast 5 votes and prefer the candidate with .6, the others cast 1 with .4."""
    votes: Cast = []
    for voter in range(200):
        share, each = (0.6, 5) if rng.random() < 0.5 else (0.4, 1)
        votes += [(voter, bool(rng.random() < share), None) for _ in range(each)]
    return votes


def leaving(rng: Rng) -> Cast:
    """Voters leave when more of their votes were for the champion; tastes are Beta(8, 8)."""
    votes: Cast = []
    for voter in range(200):
        share, lead = rng.beta(8, 8), 0
        for _ in range(5):
            won = bool(rng.random() < share)
            lead += 1 if won else -1
            votes.append((voter, won, None))
            if lead < 0:
                break
    return votes


def alike(share: float) -> Shares:
    return lambda rng, n: np.full(n, share)


def beta(a: float, b: float) -> Shares:
    return lambda rng, n: rng.beta(a, b, n)


def haters(share: float) -> Shares:
    return lambda rng, n: np.where(rng.random(n) < share, 0.0, 0.5 / (1 - share))


def one_persons_logins(logins: int) -> Shares:
    """So many logins of one person, who always prefers the candidate, among voters without a preference."""
    return lambda rng, n: np.where(rng.permutation(n) < logins, 1.0, 0.5)


def lead_that_is_lost(rng: Rng) -> Cast:
    """30 voters of .8, then 60 of .25: after all, the mean is below 1/2."""
    return [(v, bool(rng.random() < (0.8 if v < 30 else 0.25)), None) for v in range(90) for _ in range(5)]


def one_dishonest(rng: Rng) -> Cast:
    """One voter casts 5 votes for the candidate; 20 others have no preference and cast 5 each."""
    return [(0, True, None)] * 5 + [(v, bool(rng.random() < 0.5), None) for v in range(1, 21) for _ in range(5)]


def vote_tuple(cast: Cast) -> tuple[Vote, ...]:
    votes = []
    for n, (voter, won, prompt) in enumerate(cast):
        more = (None if prompt is None else str(prompt), T0 + timedelta(seconds=n)) if HAS_PROMPTS else ()
        votes.append(Vote(str(voter), "candidate" if won else "champion", *more))
    return tuple(votes)


def passes(policy: VotesPolicy, votes: Sequence[Vote], end: int, *, number: int = 1) -> bool:
    """Judge the first ``end`` votes; the last time is two days after the last vote, when every voter is finished."""
    late = timedelta(hours=48 if end == len(votes) else 0, seconds=int(end))
    now = {"read_at": T0 + late} if HAS_PROMPTS else {}
    return judge_votes(policy, Votes(tuple(votes[:end]), number, **now)).outcome == "pass"


def promoted(cast: Draw, policies: Sequence[VotesPolicy] = (POLICY,)) -> Trial:
    """Judge by each policy at several looks. Under another policy the same votes are another test, except in the first preview."""

    def trial(rng: Rng) -> bool:
        votes = vote_tuple(cast(rng))
        ends = np.unique(np.linspace(0, len(votes), LOOKS + 1).astype(int))[1:]
        return any(
            passes(policy, votes, int(end), number=number if HAS_PROMPTS else 1)
            for end in ends
            for number, policy in enumerate(policies, 1)
        )

    return trial


def any_of_pairs(pairs: int, cast: Draw) -> Trial:
    """Judge pairs of equal versions one after another. The votes of each are deleted before the next.

    The first preview numbers pairs by the votes that are left, so each is the first.
    """

    def trial(rng: Rng) -> bool:
        for number in range(1, pairs + 1):
            votes = vote_tuple(cast(rng))
            if passes(POLICY, votes, len(votes), number=number if HAS_PROMPTS else 1):
                return True
        return False

    return trial


def lost_lead(rng: Rng) -> bool:
    """Judge once, after all votes."""
    votes = vote_tuple(lead_that_is_lost(rng))
    return passes(POLICY, votes, len(votes))


SCENARIOS = [
    error("votes: alike, one after another", promoted(in_turns(40, 5, alike(0.5))), FIRST_PAIR, "2.8"),
    error("votes: alike, at once", promoted(in_turns(40, 5, alike(0.5), at_once=True)), FIRST_PAIR),
    error("votes: one vote each", promoted(in_turns(60, 1, alike(0.5))), FIRST_PAIR),
    error("votes: tastes Beta(2, 2)", promoted(in_turns(40, 5, beta(2, 2))), FIRST_PAIR, "4.0"),
    error("votes: tastes Beta(.5, .5)", promoted(in_turns(40, 5, beta(0.5, 0.5))), FIRST_PAIR),
    error("votes: a tenth always against", promoted(in_turns(40, 5, haters(0.1))), FIRST_PAIR, "4.5"),
    *[
        error(f"votes: {prompts} shared prompts", promoted(on_prompts(200, 5, prompts, beta(1, 1))), FIRST_PAIR, audit)
        for prompts, audit in ((5, "41"), (10, "36"), (100, "15"), (200, "10"))
    ],
    error("votes: busy voters prefer it", promoted(busy), FIRST_PAIR, "81"),
    error("votes: voters leave when behind", promoted(leaving), FIRST_PAIR, "16"),
    error("votes: a lead of 30 voters that 60 others turn", lost_lead, FIRST_PAIR, ""),
    error(
        "votes: any of 20 equal pairs, of which the votes are deleted",
        any_of_pairs(20, in_turns(40, 5, alike(0.5))),
        0.05,
        "28",
        share=0.5,
    ),
    error(
        "votes: any of 8 policies for the same votes", promoted(in_turns(40, 5, alike(0.5)), EIGHT_POLICIES), 0.05, "17"
    ),
    *[
        outside(
            f"votes: {logins} of 40 logins are one person's",
            promoted(in_turns(40, 5, one_persons_logins(logins))),
            audit,
        )
        for logins, audit in ((5, "20"), (8, "47"))
    ],
    outside("votes: unit vote, one dishonest voter", promoted(one_dishonest, (BY_VOTE,)), "27"),
    outside("votes: unit vote, tastes Beta(2, 2)", promoted(in_turns(40, 5, beta(2, 2)), (BY_VOTE,)), "18"),
    *[
        power(
            f"votes: {n} voters of 5 at .{share}, {'at once' if at_once else 'one after another'}",
            promoted(in_turns(n, 5, alike(share / 100), at_once=at_once)),
        )
        for n, share in ((10, 80), (20, 65), (50, 65), (50, 60))
        for at_once in (False, True)
    ],
    power("votes: 20 voters of 20 at .80, at once", promoted(in_turns(20, 20, alike(0.8), at_once=True))),
    power("votes: 50 voters of 5 at .65 on 200 prompts", promoted(on_prompts(50, 5, 200, alike(0.65)))),
]
