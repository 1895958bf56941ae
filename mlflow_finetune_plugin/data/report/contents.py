"""What happened to the data, row by row counted: the record behind the ``data`` line of a run. No heavy imports."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from mlflow_finetune_plugin.data.tokens.token_report import TokenReport
from mlflow_finetune_plugin.errors import DataError

MAX_LINES = 20
"""Line numbers kept per reason; the counts are always whole."""


@dataclass(frozen=True)
class SkipCount:
    """How many rows of one file were left out for one reason, and the first of them."""

    reason: str
    rows: int
    lines: tuple[int, ...]
    detail: str = ""
    example: str = ""


@dataclass(frozen=True)
class FileReport:
    """One data file. ``kept`` counts rows that became training or evaluation rows, before weighting."""

    name: str
    task: str
    role: str
    layout: str
    rows_read: int
    kept: int
    skipped: tuple[SkipCount, ...]
    weight: float = 1.0
    rows_after_weight: int = 0
    conversations: int = 0
    """What the rows hold: more than ``rows_read`` where a row has several answers. Each is kept or skipped."""


@dataclass(frozen=True)
class DataFinding:
    """What a check found in rows that are kept: how often, where first, one example, the remedy."""

    check: str
    count: int
    text: str
    places: tuple[str, ...]
    example: str
    fix: str
    is_warning: bool = True

    def __str__(self) -> str:
        where = f" ({', '.join(self.places[:3])}{', ...' if len(self.places) > 3 else ''})" if self.places else ""
        return f"{self.count:,} {self.text}{where}; fix: {self.fix}"


@dataclass(frozen=True)
class LabelReport:
    """Labels of the label layout with their rows, most frequent first."""

    train: tuple[tuple[str, int], ...]
    eval: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class DataReport:
    """The whole data set. Row counts are rows of the files; one row is several examples when it was unrolled."""

    files: tuple[FileReport, ...]
    train_rows: int
    eval_rows: int
    eval_split: str
    train: TokenReport
    eval: TokenReport
    max_length: int
    overlength: str
    over_length: int
    truncated: int
    truncated_end_of_turn: int
    truncated_answer: int
    duplicates: int
    contradictions: int
    eval_duplicates: int
    leaked_prompts: int
    leaked_rows: int
    unrolled: int
    boundary_splits: int
    template_source: str
    template_digest: str
    answer_prefix: str
    end_of_turn_token: str
    stop_tokens: tuple[str, ...]
    digest: str
    eval_digest: str
    notes: tuple[str, ...]
    mask_samples: tuple[tuple[dict[str, Any], ...], ...] = field(repr=False)
    findings: tuple[DataFinding, ...] = ()
    labels: LabelReport | None = None

    @property
    def kept(self) -> int:
        return sum(file.kept for file in self.files)

    @property
    def skipped(self) -> int:
        return sum(skip.rows for file in self.files for skip in file.skipped)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd and does not stop the run, each with its remedy."""
        found = [str(finding) for finding in self.findings if finding.is_warning]
        if self.truncated_end_of_turn:
            found.append(
                f"{self.truncated_end_of_turn} examples lost their end-of-turn token to max_length {self.max_length}; "
                "fix: raise training.max_length, or data.overlength: drop"
            )
        if self.truncated_answer:
            found.append(
                f"{self.truncated_answer} answers vanished behind max_length {self.max_length}; "
                "fix: raise training.max_length, or data.overlength: drop"
            )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON types, for the report artifact."""
        return {
            **_json(asdict(self)),
            "kept": self.kept,
            "skipped": self.skipped,
            "warnings": list(self.warnings),
            "summary": self.summary(),
        }

    @classmethod
    def from_json(cls, text: str) -> DataReport:
        """What ``to_json`` gave, also as an earlier version of the package wrote it. Raises DataError for anything else."""
        from pydantic import TypeAdapter

        try:
            report: DataReport = TypeAdapter(cls).validate_json(text)
            told = "max" in report.train.length_quantiles and "max" in report.eval.length_quantiles
            pieces = [piece for sample in report.mask_samples for piece in sample]
            if not told or not all({"text", "carries_loss"} <= piece.keys() for piece in pieces):
                raise ValueError("lengths or samples are not whole")
        except ValueError as error:
            raise DataError(
                f"this is no data report: {' '.join(str(error).split())[:300]}; fix: train it again"
            ) from error
        return report

    def _sides(self) -> str:
        """How many of the rows kept are learnt and how many are held out."""
        return f"{self.train_rows:,} to train on, {self.eval_rows:,} to evaluate on"

    def summary(self) -> str:
        """One line for the console."""
        reasons: Counter[str] = Counter()
        for file in self.files:
            for skip in file.skipped:
                reasons[skip.reason] += skip.rows
        why = ", ".join(f"{rows:,} {reason}" for reason, rows in reasons.most_common())
        tokens = self.train.tokens + self.eval.tokens
        share = round(100 * (self.train.loss_tokens + self.eval.loss_tokens) / tokens) if tokens else 0
        return (
            f"data  {self.kept:,} kept ({self._sides()}), {self.skipped:,} skipped{f' ({why})' if why else ''}, "
            f"{_count(self.duplicates, 'duplicate')}, {self.over_length:,} over length; "
            f"{share} % of {tokens:,} tokens carry loss"
        )


class UnusableDataError(DataError):
    """The rows were read and cannot be trained on as the config says; ``report`` shows them all."""

    def __init__(self, message: str, report: DataReport) -> None:
        super().__init__(message)
        self.report = report


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json(inner) for key, inner in value.items()}
    return [_json(inner) for inner in value] if isinstance(value, list | tuple) else value
