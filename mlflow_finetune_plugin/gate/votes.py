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
    """The result of ``voter_scores``.

    Args:
        scores: (voters,) in [0, 1], of the voters that count, in the order of their first votes.
        lowest_scores: (voters,) The same if every vote that was not cast were the champion's. Leaving early cannot raise them.
        waiting: Voters who have begun and do not count yet.
        unfinished: Voters who count and were closed before their last vote.
        left_after_win: Unfinished voters whose last vote was for the candidate.
        left_after_loss: Unfinished voters whose last vote was for the champion. Where this differs a lot from
            ``left_after_win`` although the score is even, voters stay or leave by what they prefer, and ``scores`` are not
            valid.
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
            scores.append(SCORES[vote.choice])
    return np.array(scores, dtype=np.float64)


def voter_scores(votes: Sequence[Vote], *, per_voter: int, patience: int = PATIENCE_VOTERS) -> VoterScores:
    """Return one score per voter. A score never changes after it was first returned, whatever is voted later.

    With k = ``per_voter``, the score of a voter with votes Y_1 .. Y_N (win 1, tie or both bad 1/2, loss 0) is

        X = 1/2 + sum over i <= min(N, k) of (Y_i - 1/2) / k,

    the mean of k votes in which those not cast weigh as ties. Voters are numbered by their first vote. Voter j is closed
    at the vote that is its k-th, or at the first vote of voter j + ``patience``. It counts once all voters before it are
    closed.

    Why the test stays valid after every vote. (1) A closed score never changes, and the voters that count are always a prefix
    X_1 .. X_m of one sequence that is fixed by the votes alone, not by who looked. (2) Under the hypothesis
    E[X_j | X_1 .. X_j-1] <= 1/2, the betting capital of ``sequential`` is a nonnegative supermartingale along that
    sequence, and by Ville 1939 its supremum over all m reaches 1/alpha with probability at most alpha. (3) A look after
    any vote, chosen for any reason and with unfinished voters in view, sees the capital at some m, so it promotes only if
    the supremum reaches 1/alpha. Counting every voter's running mean instead would break (1): the capital could be read at a
    fluctuation that the sequence of final scores never has.

    When the hypothesis holds, for voters who do not see each other's votes and do not come because of them:
    (a) votes have mean 1/2 given the voter's own past, even where a voter leaves because of an outcome: X - 1/2 is then a
    stopped martingale over k. (A plain mean of the votes cast would not do: leaving at the first win makes it .69.)
    (b) voters differ and the mean of their means is 1/2, as long as the number of votes that count does not depend on what
    the voter prefers, as when all cast k. It does not hold where voters who like the candidate stay longer. In a blind
    comparison a vote for either side looks the same to its voter, so there is little reason for this. ``lowest_scores``
    satisfy the hypothesis whatever makes voters leave, because they are never above the scores of k votes, and so does
    ``per_voter=1``, which leaving cannot affect.

    Raises:
        GateError: A cap or a patience is below 1.
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
