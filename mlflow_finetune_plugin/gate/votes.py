"""Votes in the order in which they were cast, and the scores of voters and prompts that the vote test uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mlflow_finetune_plugin.errors import GateError

Array = NDArray[np.float64]
Choice = Literal["candidate", "champion", "tie", "both_bad"]

SCORES: dict[Choice, float] = {"candidate": 1.0, "champion": 0.0, "tie": 0.5, "both_bad": 0.5}
"""``both_bad`` prefers neither side, so it has the weight of a tie. The tally counts it separately."""


@dataclass(frozen=True)
class Vote:
    """One answer of one voter. Raises GateError for an unknown choice.

    Args:
        voter: Who voted.
        choice: The preferred side.
        prompt: What the answers were to, as any name that is equal for equal prompts; None: no other vote is on it.
        cast_at: When it was cast; None: unknown, and then no pause between this vote and others closes its voter.
    """

    voter: str
    choice: Choice
    prompt: str | None = None
    cast_at: datetime | None = None

    def __post_init__(self) -> None:
        if self.choice not in SCORES:
            raise GateError(f"no choice {self.choice!r}; fix: pick one of: {', '.join(get_args(Choice))}")

    @property
    def score(self) -> float:
        return SCORES[self.choice]


@dataclass(frozen=True)
class Tally:
    """The counts of all votes, including those that a test leaves out."""

    candidate: int
    champion: int
    tie: int
    both_bad: int
    voters: int

    @property
    def decisive(self) -> int:
        return self.candidate + self.champion


@dataclass(frozen=True)
class VoterVotes:
    """The votes of one voter that count, the first ``per_voter`` before the voter was closed.

    Args:
        votes: At least one.
        places: The place of each vote among the votes of all voters.
        per_voter: How many votes of a voter count.
        is_open: Whether more votes of this voter may count.
    """

    votes: tuple[Vote, ...]
    places: tuple[int, ...]
    per_voter: int
    is_open: bool

    @property
    def total(self) -> float:
        return sum(vote.score for vote in self.votes)

    @property
    def shrunk(self) -> float:
        """The mean of ``per_voter`` votes of which those not cast weigh as ties."""
        return 0.5 + (self.total - 0.5 * len(self.votes)) / self.per_voter

    @property
    def plain(self) -> float:
        """The mean of the votes that were cast."""
        return self.total / len(self.votes)

    @property
    def lowest(self) -> float:
        """The score if every vote not cast preferred the champion. No later vote makes ``shrunk`` or ``plain`` lower."""
        return self.total / self.per_voter

    @property
    def highest(self) -> float:
        """The score if every vote not cast preferred the candidate. No later vote makes ``shrunk`` or ``plain`` higher."""
        return (self.total + self.per_voter - len(self.votes)) / self.per_voter


@dataclass(frozen=True)
class VoterBounds:
    """Scores that are proven now, one per voter in the order of the voters' first votes; (voters,) in [0, 1] each.

    A closed voter has the final score. An open voter has the lowest score that is still possible in ``low_*``, and the
    highest in ``high_*``, so a later vote never lowers a ``low_*`` score or raises a ``high_*`` score.
    """

    low_shrunk: Array
    low_plain: Array
    high_shrunk: Array
    high_plain: Array


def tally(votes: Sequence[Vote]) -> Tally:
    counts = Counter(vote.choice for vote in votes)
    return Tally(
        candidate=counts["candidate"],
        champion=counts["champion"],
        tie=counts["tie"],
        both_bad=counts["both_bad"],
        voters=len({vote.voter for vote in votes}),
    )


def decisive_scores(votes: Sequence[Vote], *, per_voter: int) -> Array:
    """Return 1 for the candidate and 0 for the champion, in order, for each voter's first ``per_voter`` decisive votes.

    Ties and ``both_bad`` are left out. Given that a vote is decisive, the hypothesis "the champion is as likely to get it"
    does not depend on what decides which votes are (the sign test: Dixon and Mood 1946, JASA 41, 557-566). The cap depends on
    earlier votes only, so each bet is placed before its vote. Shape (votes that count,).
    """
    _check_cap(per_voter)
    votes_by_voter: Counter[str] = Counter()
    scores = []
    for vote in votes:
        if vote.choice in ("candidate", "champion") and votes_by_voter[vote.voter] < per_voter:
            votes_by_voter[vote.voter] += 1
            scores.append(vote.score)
    return np.array(scores, dtype=np.float64)


def votes_by_voter(
    votes: Sequence[Vote], *, per_voter: int, closes_after: timedelta, now: datetime | None
) -> list[VoterVotes]:
    """Return the votes that count, by voter, in the order of the voters' first votes.

    A voter is closed by the vote that is number ``per_voter``, or by ``closes_after`` without a vote. Votes after that do not
    count, so the final score of a voter depends on that voter's votes and their times, not on the looks.

    Args:
        votes: In the order in which they were cast.
        per_voter: How many votes of a voter count.
        closes_after: The longest pause between two votes of a voter.
        now: The time of the look; None: no more votes will come, so every voter is closed.

    Raises:
        GateError: ``per_voter`` is below 1, or ``closes_after`` is not above 0.
    """
    _check_cap(per_voter)
    if closes_after <= timedelta(0):
        raise GateError(
            f"a pause of {closes_after} closes voters before their second vote; fix: give more than 0 hours"
        )
    places_by_voter: dict[str, list[int]] = {}
    late: set[str] = set()
    for place, vote in enumerate(votes):
        places = places_by_voter.setdefault(vote.voter, [])
        if places and _has_passed(closes_after, votes[places[-1]].cast_at, vote.cast_at):
            late.add(vote.voter)
        if vote.voter not in late and len(places) < per_voter:
            places.append(place)

    def is_open(voter: str, places: list[int]) -> bool:
        has_left = voter in late or now is None or _has_passed(closes_after, votes[places[-1]].cast_at, now)
        return len(places) < per_voter and not has_left

    return [
        VoterVotes(tuple(votes[place] for place in places), tuple(places), per_voter, is_open(voter, places))
        for voter, places in places_by_voter.items()
    ]


def voter_bounds(voters: Sequence[VoterVotes]) -> VoterBounds:
    """Return the scores that the vote test may bet on now.

    Why a test on them stays valid at every look. Let X_1, X_2, ... be the final scores of the voters in the order of their
    first votes. (1) They are fixed by the votes, not by the looks. (2) Under the hypothesis E[X_j | X_1 .. X_j-1] <= 1/2 the
    capital of ``sequential`` along X is a nonnegative supermartingale, and by Ville 1939 it ever reaches 1/alpha with
    probability at most alpha. (3) The capital rises in every score, and ``low_*`` is never above X, so the capital seen at any
    look, over any first voters, is at most the capital of X over the same voters. A voter may begin before
    another one finishes. ``high_*`` is the mirror image for "worse".

    The hypothesis for voters who do not see each other's votes:
    - ``shrunk``: votes have mean 1/2 given the voter's own past, also where a voter leaves because of an outcome (X - 1/2 is a
      stopped martingale over ``per_voter``), or voters differ with a mean of 1/2 and cast equally many votes;
    - ``plain``: voters differ with a mean of 1/2 over voters and do not leave because of an outcome, however many votes
      each casts. Busy voters who prefer the candidate more than casual ones do raise ``shrunk``, and not ``plain``.
    A decision needs both, so it is wrong with a probability of at most alpha where either hypothesis holds.
    """
    return VoterBounds(
        low_shrunk=np.array([voter.lowest if voter.is_open else voter.shrunk for voter in voters]),
        low_plain=np.array([voter.lowest if voter.is_open else voter.plain for voter in voters]),
        high_shrunk=np.array([voter.highest if voter.is_open else voter.shrunk for voter in voters]),
        high_plain=np.array([voter.highest if voter.is_open else voter.plain for voter in voters]),
    )


def prompt_scores(voters: Sequence[VoterVotes]) -> Array | None:
    """Return the score of the first vote on each prompt, in order; (prompts,). None: no two voters share a prompt.

    Voters who share prompts are not independent: a prompt that suits the candidate wins the votes of all of them. The first
    votes on different prompts are independent of each other as prompts are.
    """
    placed = sorted(
        ((place, vote) for voter in voters for place, vote in zip(voter.places, voter.votes, strict=True)),
        key=lambda item: item[0],
    )
    first: dict[str | int, Vote] = {}
    is_shared = False
    for place, vote in placed:
        name = place if vote.prompt is None else vote.prompt
        is_shared |= first.setdefault(name, vote).voter != vote.voter
    return np.array([vote.score for vote in first.values()], dtype=np.float64) if is_shared else None


def _has_passed(pause: timedelta, since: datetime | None, until: datetime | None) -> bool:
    return since is not None and until is not None and until - since > pause


def _check_cap(per_voter: int) -> None:
    if per_voter < 1:
        raise GateError(f"{per_voter} votes per voter count nothing; fix: give 1 or more")
