"""The report on a model's votes: one pair of versions, people and each judge separately, as text and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mlflow_finetune_plugin.evaluation.results import Interval
from mlflow_finetune_plugin.store.clients import client_for, command_client
from mlflow_finetune_plugin.votes.checks import Bias, Summary, agreement, summarise
from mlflow_finetune_plugin.votes.mlflow.reading import Reading, read_votes
from mlflow_finetune_plugin.votes.pair import VersionPair, find_pair


@dataclass(frozen=True)
class JudgeSummary:
    """A judge's votes on the pair. Of the ``shared`` turns that people decided too, it agreed with them on ``agreed``."""

    voter: str
    summary: Summary
    agreed: int
    shared: int


@dataclass(frozen=True)
class VotesReport:
    """The votes of a model, and those between two of its versions.

    Args:
        reading: All votes.
        people: The votes of people between the two versions; None: there is no pair to compare.
        judges: The votes of each judge between the two versions.
        why_no_pair: Why there is no pair.
    """

    reading: Reading
    people: Summary | None
    judges: tuple[JudgeSummary, ...]
    why_no_pair: str = ""

    @property
    def counts(self) -> dict[tuple[str, str], int]:
        """The number of people's votes that count, by pair of versions."""
        return self.reading.pairs()

    def to_dict(self) -> dict[str, Any]:
        """Return counts, shares in [0, 1] with their intervals, and p-values, ready for JSON."""
        return {
            "model": self.reading.model,
            "votes": len(self.reading.votes),
            "not_counted": self.reading.not_counted,
            "copies": self.reading.copies,
            "pairs": [{"versions": list(pair), "votes": count} for pair, count in self.reading.pairs().items()],
            "people": None if self.people is None else _summary_json(self.people),
            "why_no_pair": self.why_no_pair or None,
            "judges": [
                {"voter": judge.voter, "agreed": judge.agreed, "shared": judge.shared, **_summary_json(judge.summary)}
                for judge in self.judges
            ],
        }

    def text(self) -> str:
        """Return the report for a terminal."""
        name = self.reading.model
        counted = sum(vote.fault is None for vote in self.reading.votes)
        if not self.reading.votes and not self.reading.unreadable:
            lines = [f"{name}: no votes yet"]
        else:
            lines = [f"{name}: {_count(len(self.reading.votes), 'vote')} in MLflow, {counted} count"]
        lines += [_line("not counted", f"{votes}: {reason}") for reason, votes in self.reading.not_counted.items()]
        if self.people is None:
            lines += ["", self.why_no_pair] if self.why_no_pair else []
            return "\n".join([*lines, *self._other_pairs()])
        lines += [
            "",
            f"{name}: {self.people.candidate} against {self.people.champion}, people",
            *_summary_lines(self.people),
        ]
        for judge in self.judges:
            lines += [
                "",
                f"{judge.voter}, a judge, not counted with people",
                *_summary_lines(judge.summary, is_judge=True),
            ]
            if judge.shared:
                lines.append(_line("agrees", f"with most people on {judge.agreed} of {_count(judge.shared, 'turn')}"))
        others = self._other_pairs()
        return "\n".join([*lines, *(["", "other pairs", *others] if others else [])])

    def _other_pairs(self) -> list[str]:
        shown = set() if self.people is None else {self.people.candidate, self.people.champion}
        return [
            _line(f"{first} and {second}", f"{_count(votes, 'vote')}; show them: --between {first} {second}")
            for (first, second), votes in self.reading.pairs().items()
            if {first, second} != shown
        ]


def report_votes(model: str, between: tuple[str, str] | None = None, tracking_uri: str | None = None) -> VotesReport:
    """Read the votes of a registered model from MLflow and summarise those between two of its versions.

    Nothing is printed and nothing is changed.

    Args:
        model: The registered model.
        between: Two versions, aliases or ``base``; None: the challenger and the champion, or the base instead of the one
            that is missing or the same version.
        tracking_uri: The tracking server; None: the one that MLflow uses now.

    Raises:
        ConfigError: The model, a version or an alias does not exist, or both names are one version.
        TrackingError: MLflow does not answer.
    """
    client = command_client() if tracking_uri is None else client_for(tracking_uri)
    pair, why_no_pair = find_pair(client, model, between)
    return report_on(read_votes(model, tracking_uri), pair, why_no_pair)


def report_on(reading: Reading, pair: VersionPair | None, why_no_pair: str = "") -> VotesReport:
    """Summarise votes that were read already."""
    if pair is None:
        return VotesReport(reading, None, (), why_no_pair)
    people, judged = (reading.between(pair.candidate, pair.champion, kind) for kind in ("person", "judge"))
    judges = []
    for voter in sorted({vote.voter for vote in judged}):
        votes = [vote for vote in judged if vote.voter == voter]
        judges.append(JudgeSummary(voter, summarise(votes, pair.candidate, pair.champion), *agreement(people, votes)))
    return VotesReport(reading, summarise(people, pair.candidate, pair.champion), tuple(judges))


def _summary_lines(summary: Summary, *, is_judge: bool = False) -> list[str]:
    if not summary.votes:
        return [_line("votes", "none between these two")]
    by = "" if is_judge else f" by {_count(summary.voters, 'voter')}"
    decisive = summary.candidate_wins + summary.champion_wins
    lines = [
        _line("votes", f"{summary.votes}{by}"),
        _line(f"{summary.candidate} preferred", str(summary.candidate_wins)),
        _line(f"{summary.champion} preferred", str(summary.champion_wins)),
        _line("tie", str(summary.ties)),
        _line("both bad", str(summary.both_bad)),
    ]
    if summary.win_rate is None:
        lines.append(_line("win rate", "none: no vote prefers an answer"))
    else:
        share = _share(summary.win_rate)
        lines.append(_line("win rate", f"{share} of {decisive} decisive votes for {summary.candidate}"))
    if not is_judge:
        flood = "; WARNING: this voter cast more votes than all others together" if summary.is_flooded else ""
        most = f"{summary.most_votes} of {summary.votes} ({summary.most_share:.1%}), {summary.most_active}"
        lines.append(_line("most by one", most + flood))
    lines.append(_line("left answer", _bias(summary.left, "voters may prefer a position, not an answer")))
    lines.append(
        _line("longer answer", _bias(summary.longer, "voters may prefer length, or the better answers are longer"))
    )
    return lines


def _bias(bias: Bias | None, meaning: str) -> str:
    if bias is None:
        return "nothing to compare"
    suspect = f"; SUSPECT: {meaning}" if bias.is_suspect else ""
    return f"won {bias.wins} of {bias.votes}, {_share(bias.share)}, p = {bias.p:.2g}{suspect}"


def _share(share: Interval) -> str:
    return f"{share.value:.1%} (95 % CI {share.low:.1%} to {share.high:.1%})"


def _line(name: str, text: str) -> str:
    return f"  {name:<16} {text}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _summary_json(summary: Summary) -> dict[str, Any]:
    flags = {"most_share": summary.most_share, "is_flooded": summary.is_flooded, "votes": summary.votes}
    return {**asdict(summary), **flags}
