"""Count, test and rank the votes of one reading, ready to be displayed. Pure.

People and judges are never pooled: figures of people are of people alone, and each judge has its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from gradio_app.standings.agreement import VoterAgreement, voter_agreement
from gradio_app.standings.terms import DEFAULT_TERMS, VoteTerms
from gradio_app.standings.vote_path import VotePath, vote_path
from mlflow_finetune_plugin.evaluation.results import Interval
from mlflow_finetune_plugin.gate.evidence import Votes
from mlflow_finetune_plugin.gate.statistics.proportions import wilson_interval
from mlflow_finetune_plugin.gate.statistics.ranking import Comparison, Ranking, rank
from mlflow_finetune_plugin.promotion.error_rates import VotePairs
from mlflow_finetune_plugin.store.names import BASE, CHAMPION
from mlflow_finetune_plugin.votes.checks import Summary
from mlflow_finetune_plugin.votes.mlflow.feedback import MirroredVote
from mlflow_finetune_plugin.votes.mlflow.reading import Reading, gate_votes
from mlflow_finetune_plugin.votes.pair import VersionPair
from mlflow_finetune_plugin.votes.report import JudgeSummary, report_on

Pair = tuple[str, str]
"""The versions of candidate and champion."""


@dataclass(frozen=True)
class VoteGroup:
    """Votes with one reason tag or of one prompt set.

    ``win_rate`` is the candidate's, of decisive votes (Wilson, 95 %).
    """

    name: str
    candidate_wins: int
    champion_wins: int
    ties: int
    both_bad: int
    win_rate: Interval | None


@dataclass(frozen=True)
class PairStanding:
    """People's votes between two versions, and each judge's beside them.

    ``terms_note`` says why the path follows terms that are not the candidate's own; empty means they are its own. A
    vote with two tags is in both groups of ``tags``, one without a tag in none. Every vote is in one of
    ``prompt_sets``; the group named "" holds prompts that people typed. ``is_hidden`` says that viewers may see only how
    many votes and voters there are (``hide_undecided``).
    """

    people: Summary
    path: VotePath
    terms_note: str
    agreement: VoterAgreement
    tags: tuple[VoteGroup, ...]
    prompt_sets: tuple[VoteGroup, ...]
    judges: tuple[JudgeSummary, ...]
    is_hidden: bool = False

    @property
    def pair(self) -> Pair:
        return self.people.candidate, self.people.champion


@dataclass(frozen=True)
class Standings:
    """The votes on all versions of a model.

    ``pairs`` starts with the pair that has the most votes of people. ``ranking`` is of people, None below three
    versions. ``votes`` counts everything in MLflow, ``not_counted`` gives the reasons of votes that do not count, and
    ``aliases`` maps an alias to its version.
    """

    model: str
    votes: int
    not_counted: Mapping[str, int]
    pairs: tuple[PairStanding, ...]
    ranking: Ranking | None
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def counted(self) -> int:
        return self.votes - sum(self.not_counted.values())

    def pair(self, pair: Pair | None) -> PairStanding | None:
        """Return the standing of ``pair``, in either order; where it has no votes, the one with the most votes."""
        return self.voted_pair(pair) or (self.pairs[0] if self.pairs else None)

    def voted_pair(self, pair: Pair | None) -> PairStanding | None:
        """Return the standing of ``pair``, in either order; None where it has no votes."""
        versions = set(pair or ())
        return next((standing for standing in self.pairs if set(standing.pair) == versions), None)


def standings_of(
    reading: Reading,
    aliases: Mapping[str, str] | None = None,
    terms: Mapping[str, VoteTerms] | None = None,
    tested: VotePairs | None = None,
) -> Standings:
    """Return the standings.

    Args:
        reading: The votes.
        aliases: Those of the model.
        terms: The terms of each version; a version that it lacks has ``DEFAULT_TERMS``.
        tested: The pairs that the gate has tested; None: none.
    """
    aliases, terms, tested = aliases or {}, terms or {}, tested or VotePairs({})
    pairs = [ordered_pair(pair, aliases) for pair in judged_pairs(reading)]
    return Standings(
        model=reading.model,
        votes=len(reading.votes) + reading.unreadable,
        not_counted=reading.not_counted,
        pairs=tuple(_standing(reading, pair, terms.get(pair[0], DEFAULT_TERMS), tested) for pair in pairs),
        ranking=_ranking(reading),
        aliases=dict(aliases),
    )


def hide_undecided(standings: Standings) -> Standings:
    """Return the standings as people may see them who still vote: the test of votes assumes that no voter follows others.

    The result of each pair that is not decided yet is hidden, and the ranking as long as one is: it would give the
    result away.
    """
    pairs = tuple(replace(each, is_hidden=each.path.test.outcome == "undecided") for each in standings.pairs)
    ranking = None if any(each.is_hidden for each in pairs) else standings.ranking
    return replace(standings, pairs=pairs, ranking=ranking)


def judged_pairs(reading: Reading) -> list[Pair]:
    """Return every two versions that people or judges voted on, the pair with the most votes of people first."""
    return list(dict.fromkeys([*reading.pairs("person"), *reading.pairs("judge")]))


def ordered_pair(pair: Pair, aliases: Mapping[str, str]) -> Pair:
    """Return the candidate and the champion: the champion side is the base, else the champion, else the older version."""

    def claim(version: str) -> tuple[bool, bool, int]:
        return version == BASE, version == aliases.get(CHAMPION), -_number(version)

    champion = max(pair, key=claim)
    return (pair[1], pair[0]) if champion == pair[0] else pair


def grouped(votes: Iterable[tuple[str, MirroredVote]], candidate: str) -> tuple[VoteGroup, ...]:
    """Group ``votes`` by the name that comes with each, the largest group first."""
    members_of: dict[str, list[MirroredVote]] = {}
    for name, vote in votes:
        members_of.setdefault(name, []).append(vote)
    ordered = sorted(members_of.items(), key=lambda group: (-len(group[1]), group[0]))
    return tuple(_group(name, members, candidate) for name, members in ordered)


def _standing(reading: Reading, pair: Pair, terms: VoteTerms, tested: VotePairs) -> PairStanding:
    report = report_on(reading, VersionPair(*pair))
    assert report.people is not None
    people = reading.between(*pair)
    test = tested.pair(*pair, terms.policy)
    votes = Votes(gate_votes(reading, *pair), test.number, read_at=reading.read_at, discoveries=test.discoveries)
    path = vote_path(votes, *pair, policy=terms.policy)
    return PairStanding(
        people=report.people,
        path=path,
        terms_note=terms.note,
        agreement=voter_agreement(people),
        tags=grouped(((tag, vote) for vote in people for tag in dict.fromkeys(vote.reasons)), pair[0]),
        prompt_sets=grouped(((vote.prompt_set or "", vote) for vote in people), pair[0]),
        judges=report.judges,
    )


def _group(name: str, votes: list[MirroredVote], candidate: str) -> VoteGroup:
    winners = [vote.winner.version for vote in votes if vote.winner is not None]
    wins = winners.count(candidate)
    choices = [vote.choice for vote in votes]
    return VoteGroup(
        name=name,
        candidate_wins=wins,
        champion_wins=len(winners) - wins,
        ties=choices.count("tie"),
        both_bad=choices.count("both_bad"),
        win_rate=wilson_interval(wins, len(winners)) if winners else None,
    )


def _ranking(reading: Reading) -> Ranking | None:
    """Return a Bradley-Terry ranking of people's votes; two versions need no ranking."""
    comparisons = []
    for first, second in reading.pairs("person"):
        for vote in reading.between(first, second):
            score = 0.5 if vote.winner is None else float(vote.winner.version == first)
            comparisons.append(Comparison(vote.voter, first, second, score))
    versions = {name for each in comparisons for name in (each.first, each.second)}
    return rank(comparisons) if len(versions) > 2 else None


def _number(version: str) -> int:
    return int(version) if version.isdigit() else 0
