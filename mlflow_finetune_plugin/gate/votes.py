"""Votes in the order in which they were cast, and the scores that the tests in ``sequential`` may use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mlflow_finetune_plugin.errors import GateError

Array = NDArray[np.float64]
Choice = Literal["candidate", "champion", "tie", "both_bad"]

SCORES: dict[Choice, float] = {"candidate": 1.0, "champion": 0.0, "tie": 0.5, "both_bad": 0.5}
"""``both_bad`` prefers neither side, so it has the weight of a tie. The tally counts it separately."""

PATIENCE_VOTERS = 5
"""How many voters may begin after a voter who has not finished before that voter is closed with the votes cast so far.
"""


@dataclass(frozen=True)
class Vote:
    """One answer of one voter. Raises GateError for an unknown choice."""

    voter: str
    choice: Choice

    def __post_init__(self) -> None:
        if self.choice not in SCORES:
            raise GateError(f"no choice {self.choice!r}; fix: pick one of: {', '.join(get_args(Choice))}")


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
class VoterScores:
    """What ``voter_scores`` found.

    ``scores`` (voters,) in [0, 1] of the voters that count, in order of their first votes; ``lowest_scores`` (voters,)
    are theirs if every vote not cast were the champion's, which no leaving can flatter; ``waiting`` voters have
    begun and do not count yet; ``unfinished`` of those that count were closed before their last vote, of whom
    ``left_after_win`` and ``left_after_loss`` had decided so in their last vote: where these two are far apart although
    the score is not, voters stay or leave by what they prefer, and ``voter_scores`` promises nothing.
    """

    scores: Array
    lowest_scores: Array
    waiting: int
    unfinished: int
    left_after_win: int
    left_after_loss: int


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
    """1 for the candidate and 0 for the champion, in order, from each voter's first ``per_voter`` decisive votes.

    Ties and ``both_bad`` are left out: given that a vote is decisive, the hypothesis "it is as likely the champion's"
    says the same whatever decides which votes are (the sign test: Dixon and Mood 1946, JASA 41, 557-566). The cap
    looks at earlier votes only, so a bet placed under it was placed before the vote. Shape (votes that count,).
    """
    _check_cap(per_voter)
    votes_by_voter: Counter[str] = Counter()
    scores = []
    for vote in votes:
        if vote.choice in ("candidate", "champion") and votes_by_voter[vote.voter] < per_voter:
            votes_by_voter[vote.voter] += 1
            scores.append(SCORES[vote.choice])
    return np.array(scores, dtype=np.float64)


def voter_scores(votes: Sequence[Vote], *, per_voter: int, patience: int = PATIENCE_VOTERS) -> VoterScores:
    """One score per voter, final when it is first given out, whatever is voted afterwards.

    With k = ``per_voter``, the score of a voter with votes Y_1 .. Y_N (win 1, tie or both bad 1/2, loss 0) is

        X = 1/2 + sum over i <= min(N, k) of (Y_i - 1/2) / k,

    the mean of k votes where those not cast weigh as ties. Voters are numbered by their first vote. Voter j is closed
    at the vote that is its k-th, or that is the first one of voter j + ``patience``, and counts once all voters before
    it are closed.

    Why looking after every vote stays harmless. (1) A closed score never changes, and who counts is always a prefix
    X_1 .. X_m of one sequence that is fixed by the votes alone, not by who looked. (2) Under the hypothesis
    E[X_j | X_1 .. X_j-1] <= 1/2, the betting capital of ``sequential`` is a nonnegative supermartingale along that
    sequence, and by Ville 1939 its supremum over all m reaches 1/alpha with probability at most alpha. (3) A look after
    any vote, chosen in the light of anything, unfinished voters included, sees the capital at some m, so it promotes
    only if the supremum reaches 1/alpha. Counting every voter's running mean instead would break (1): the capital could
    be caught at a fluctuation that the sequence of final scores never has.

    Which worlds satisfy the hypothesis, when voters neither see each other's votes nor come because of them:
    (a) votes of mean 1/2 given the voter's own past, even where a voter leaves because of an outcome: X - 1/2 is then a
    stopped martingale over k (a plain mean of the votes cast would not be: leaving at the first win makes it .69);
    (b) voters who differ, the mean of their means being 1/2, as long as how many votes count does not depend on what
    the voter prefers, as when all cast k. Not satisfied where voters who like the candidate stay longer. In a blind
    comparison a vote for either side looks the same to its voter, so there is little reason to; but ``lowest_scores``
    satisfy it whatever makes voters leave, being nowhere above the scores of the k votes they would have cast, and so
    does ``per_voter=1``, which no leaving touches.

    Raises GateError for a cap or a patience below 1.
    """
    _check_cap(per_voter)
    if patience < 1:
        raise GateError(f"a patience of {patience} voters closes voters before they begin; fix: give 1 or more")
    cast: dict[str, list[float]] = {}  # counted votes, voters in order of their first
    closed: set[str] = set()
    begun: list[str] = []
    for vote in votes:
        if vote.voter not in cast:
            cast[vote.voter] = []
            begun.append(vote.voter)
            if len(begun) > patience:
                closed.add(begun[-1 - patience])
        if vote.voter not in closed:
            cast[vote.voter].append(SCORES[vote.choice])
            if len(cast[vote.voter]) == per_voter:
                closed.add(vote.voter)
    counted = next((i for i, voter in enumerate(begun) if voter not in closed), len(begun))
    scores = [0.5 + (sum(cast[voter]) - 0.5 * len(cast[voter])) / per_voter for voter in begun[:counted]]
    last = [cast[voter][-1] for voter in begun[:counted] if len(cast[voter]) < per_voter]
    return VoterScores(
        scores=np.array(scores, dtype=np.float64),
        lowest_scores=np.array([sum(cast[voter]) / per_voter for voter in begun[:counted]], dtype=np.float64),
        waiting=len(begun) - counted,
        unfinished=len(last),
        left_after_win=last.count(1.0),
        left_after_loss=last.count(0.0),
    )


def _check_cap(per_voter: int) -> None:
    if per_voter < 1:
        raise GateError(f"{per_voter} votes per voter count nothing; fix: give 1 or more")
