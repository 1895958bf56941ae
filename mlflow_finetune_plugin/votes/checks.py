"""Statistics of a set of votes: counts, win rate, votes per voter, and biases by position and length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mlflow_finetune_plugin.evaluation.results import Interval
from mlflow_finetune_plugin.gate.statistics.proportions import binomial_p, wilson_interval
from mlflow_finetune_plugin.votes.mlflow.feedback import MirroredVote

SUSPECT_P = 0.01
"""A bias below this p-value is reported as suspect. Nothing else depends on it."""
FLOOD_SHARE = 0.5
"""One of several voters with more than this share of all votes is reported as flooding."""


@dataclass(frozen=True)
class Bias:
    """How often decisive votes went to the left, or the longer, answer. ``p`` tests a share of one half, exact and two-sided."""

    wins: int
    votes: int
    share: Interval
    p: float

    @property
    def is_suspect(self) -> bool:
        return self.p < SUSPECT_P


@dataclass(frozen=True)
class Summary:
    """The votes between ``candidate`` and ``champion``.

    ``win_rate`` is the candidate's share of decisive votes with Wilson's 95 % interval, which assumes independent votes and a
    single evaluation; None without decisive votes. The gate uses other statistics: it weighs votes by voter and stays valid
    when it is evaluated repeatedly.
    """

    candidate: str
    champion: str
    candidate_wins: int
    champion_wins: int
    ties: int
    both_bad: int
    win_rate: Interval | None
    voters: int
    most_active: str | None
    most_votes: int
    left: Bias | None
    longer: Bias | None

    @property
    def votes(self) -> int:
        return self.candidate_wins + self.champion_wins + self.ties + self.both_bad

    @property
    def most_share(self) -> float:
        """The share of all votes that the most active voter cast."""
        return self.most_votes / self.votes if self.votes else 0.0

    @property
    def is_flooded(self) -> bool:
        return self.voters > 1 and self.most_share > FLOOD_SHARE


def summarise(votes: Sequence[MirroredVote], candidate: str, champion: str) -> Summary:
    """Summarise votes that are all between these two versions (see ``Reading.between``)."""
    decisive = [(vote, vote.winner) for vote in votes if vote.winner is not None]
    wins = sum(winner.version == candidate for _, winner in decisive)
    voters = Counter(vote.voter for vote in votes)
    most_active, most_votes = voters.most_common(1)[0] if voters else (None, 0)
    unequal = [(vote, winner) for vote, winner in decisive if vote.left.chars != vote.right.chars]
    return Summary(
        candidate=candidate,
        champion=champion,
        candidate_wins=wins,
        champion_wins=len(decisive) - wins,
        ties=sum(vote.choice == "tie" for vote in votes),
        both_bad=sum(vote.choice == "both_bad" for vote in votes),
        win_rate=wilson_interval(wins, len(decisive)) if decisive else None,
        voters=len(voters),
        most_active=most_active,
        most_votes=most_votes,
        left=_bias([vote.choice == "left" for vote, _ in decisive]),
        longer=_bias([winner.chars == max(vote.left.chars, vote.right.chars) for vote, winner in unequal]),
    )


def agreement(people: Sequence[MirroredVote], judges: Sequence[MirroredVote]) -> tuple[int, int]:
    """Return on how many turns people (by majority) and judges prefer the same answer, and on how many both prefer one."""
    preferred = [_majorities(votes) for votes in (people, judges)]
    both = preferred[0].keys() & preferred[1].keys()
    return sum(preferred[0][answers] == preferred[1][answers] for answers in both), len(both)


def _majorities(votes: Sequence[MirroredVote]) -> dict[frozenset[str], str]:
    """Return the preferred answer by pair of answers; pairs without a majority are left out."""
    counts: dict[frozenset[str], Counter[str]] = {}
    for vote in votes:
        if vote.winner is not None:
            answers = frozenset({vote.left.answer_id, vote.right.answer_id})
            counts.setdefault(answers, Counter())[vote.winner.answer_id] += 1
    leading = {answers: count.most_common() for answers, count in counts.items()}
    return {answers: order[0][0] for answers, order in leading.items() if len(order) == 1 or order[0][1] > order[1][1]}


def _bias(wins: Sequence[bool]) -> Bias | None:
    if not wins:
        return None
    return Bias(sum(wins), len(wins), wilson_interval(sum(wins), len(wins)), binomial_p(sum(wins), len(wins)))
