"""The data report: how many rows each file gave, what was left out and why, and what the checks found. No heavy imports."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from pydantic import Field

from mlflow_finetune_plugin.data.conversations.row_faults import OVER_LENGTH
from mlflow_finetune_plugin.data.tokens.token_report import TokenReport
from mlflow_finetune_plugin.errors import DataError

MAX_LINES = 20
"""How many line numbers the report lists per reason. The counts always cover all rows."""

_LOW_LOSS_SHARE = 0.02
"""Below it the summary mentions the share of tokens that the model learns from. Short answers such as labels are usually 5 to
30 % of the tokens; under 2 % the trainer reads more than fifty tokens for each one that it learns."""


@dataclass(frozen=True)
class SkipCount:
    """How many rows of one file were left out for one reason, with the first line numbers and one example."""

    reason: str
    rows: int
    lines: tuple[int, ...]
    detail: str = ""
    example: str = ""


@dataclass(frozen=True)
class FileReport:
    """The row counts of one data file. ``rows_used`` counts training and held-out rows before weighting; its JSON key is ``kept``."""

    name: str
    task: str
    role: str
    layout: str
    rows_read: int
    rows_used: Annotated[int, Field(validation_alias="kept")]
    skipped: tuple[SkipCount, ...]
    weight: float = 1.0
    rows_after_weight: int = 0
    conversations: int = 0
    """More than ``rows_read`` where a row has several answers. Each conversation is kept or skipped."""
    unused_columns: dict[str, int] = field(default_factory=dict)
    """The number of rows with a value in each column that the layout does not use."""


@dataclass(frozen=True)
class DataFinding:
    """What one check reports about kept rows: how often it occurs, where first, one example and the fix."""

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
    """The labels of rows in the ``label`` layout with their row counts, most frequent first."""

    train: tuple[tuple[str, int], ...]
    eval: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class PictureReport:
    """The pictures of the rows that are used.

    Attributes:
        rows: Rows with pictures.
        pictures: Pictures of all rows.
        distinct: Different pictures.
        smallest: The smallest width and the smallest height, in pixels.
        largest: The largest width and the largest height, in pixels.
        tokens: The tokens that stand for pictures in the examples of these rows.
    """

    rows: int
    pictures: int
    distinct: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    tokens: int

    def __str__(self) -> str:
        sizes = f"{self.smallest[0]:,} x {self.smallest[1]:,}"
        if self.smallest != self.largest:
            sizes += f" to {self.largest[0]:,} x {self.largest[1]:,}"
        return (
            f"{_count(self.pictures, 'picture')} in {_count(self.rows, 'row')}, {self.distinct:,} distinct, {sizes} pixels, "
            f"{self.tokens / self.rows:,.0f} tokens of pictures per row"
        )


@dataclass(frozen=True)
class DataReport:
    """The report on all files of a run.

    Row counts are rows of the files. A row with several assistant turns may become several training examples.
    ``fault`` says why the data cannot be used; None where it can.
    """

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
    fault: str | None = None
    validation_rows: int = 0
    validation_split: str = ""
    thinking_turns: int = 0
    """Assistant turns that hold what the model thought."""
    pictures: PictureReport | None = None
    """None where no row has a picture."""

    @property
    def rows_used(self) -> int:
        return sum(file.rows_used for file in self.files)

    @property
    def skipped(self) -> int:
        return sum(skip.rows for file in self.files for skip in file.skipped)

    @property
    def warnings(self) -> tuple[str, ...]:
        """The findings that do not stop the run but should be looked at, each with its fix."""
        warnings = [str(finding) for finding in self.findings if finding.is_warning]
        fix = "fix: raise training.max_length, or set data.overlength: drop"
        if self.truncated_end_of_turn:
            warnings.append(
                f"{_count(self.truncated_end_of_turn, 'example')} lost the end-of-turn token because max_length is "
                f"{self.max_length} tokens, so the adapter may not learn to stop; {fix}"
            )
        if self.truncated_answer:
            warnings.append(
                f"{_count(self.truncated_answer, 'answer')} {_were(self.truncated_answer)} cut off entirely because max_length is "
                f"{self.max_length} tokens; {fix}"
            )
        return tuple(warnings)

    @property
    def verdict(self) -> str:
        """Return ``good``, ``usable``, ``usable with N warnings`` or ``unusable``."""
        if self.fault is not None:
            return "unusable"
        if self.warnings:
            return f"usable with {_count(len(self.warnings), 'warning')}"
        return "usable" if self.skipped else "good"

    def to_json(self) -> dict[str, Any]:
        """Return the whole report as JSON types, for the report artifact."""
        report = _json(asdict(self))
        for file in report["files"]:
            file["kept"] = file.pop("rows_used")
        return {
            **report,
            "kept": self.rows_used,
            "skipped": self.skipped,
            "warnings": list(self.warnings),
            "summary": self.summary(),
        }

    @classmethod
    def from_json(cls, text: str) -> DataReport:
        """Read what ``to_json`` wrote, also with an earlier version of this package.

        Raises:
            DataError: ``text`` is not a data report.
        """
        from pydantic import TypeAdapter

        try:
            report: DataReport = TypeAdapter(cls).validate_json(text)
            has_lengths = "max" in report.train.length_quantiles and "max" in report.eval.length_quantiles
            pieces = [piece for sample in report.mask_samples for piece in sample]
            if not has_lengths or not all({"text", "carries_loss"} <= piece.keys() for piece in pieces):
                raise ValueError("lengths or samples are incomplete")
        except ValueError as error:
            raise DataError(
                f"not a valid data report: {' '.join(str(error).split())[:300]}; fix: train the adapter again"
            ) from error
        return report

    def summary(self, *, is_evaluation: bool = False) -> str:
        """Return one line for the console: the verdict, then the counts that matter.

        Args:
            is_evaluation: Nothing is trained, so all rows are there to be evaluated.
        """
        repeats = self.duplicates + self.eval_duplicates
        duplicates = _count(repeats, "duplicate") if repeats else "no duplicates"
        reasons = self._skip_reasons()
        parts = [_skipped_text(reasons), duplicates]
        if changed := self.over_length - reasons[OVER_LENGTH]:
            parts.append(f"{changed:,} longer than max_length ({self.overlength})")
        if 0 < (share := self._loss_share()) < _LOW_LOSS_SHARE:  # prompts alone have no answers
            parts.append(f"only {share:.1%} of the tokens are answers to learn from, the rest is prompt")
        chosen_by = f"{self.validation_rows:,} for validation, " if self.validation_rows else ""
        rows = f"{_count(self.train_rows, 'row')} to train on, {chosen_by}{self.eval_rows:,} held out"
        if is_evaluation:
            rows = f"{_count(self.eval_rows, 'row')} to evaluate"
        return f"{self.verdict}: {rows}; {', '.join(parts)}"

    def _skip_reasons(self) -> Counter[str]:
        reasons: Counter[str] = Counter()
        for file in self.files:
            for skip in file.skipped:
                reasons[skip.reason] += skip.rows
        return reasons

    def _loss_share(self) -> float:
        """Return the share of all tokens that carry loss, from 0 to 1; 1 where there are no tokens."""
        tokens = self.train.tokens + self.eval.tokens
        return (self.train.loss_tokens + self.eval.loss_tokens) / tokens if tokens else 1.0


class UnusableDataError(DataError):
    """The rows were read, and cannot be used as the config says. ``report`` holds the counts and the reasons."""

    def __init__(self, message: str, report: DataReport) -> None:
        super().__init__(message)
        self.report = report


def _skipped_text(reasons: Counter[str]) -> str:
    if not reasons:
        return "none skipped"
    return f"{reasons.total():,} skipped ({', '.join(f'{rows:,} {reason}' for reason, rows in reasons.most_common())})"


def _were(number: int) -> str:
    return "was" if number == 1 else "were"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json(inner) for key, inner in value.items()}
    return [_json(inner) for inner in value] if isinstance(value, list | tuple) else value
