"""Count what happens to the rows of a file."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mlflow_finetune_plugin.data.conversations.layouts import Layout
from mlflow_finetune_plugin.data.report.contents import MAX_LINES, FileReport, SkipCount

_EXAMPLE_CHARS = 200
_SHOWN_COLUMNS = 50
_MAX_LABELS = 10_000
_BASE64 = re.compile(r"(data:[\w/.+-]*;base64,)[^\"]+")


@dataclass
class RowTally:
    """The counts of one file in one role, with the first lines and one example of each reason."""

    name: str
    task: str
    weight: float
    role: Literal["train", "eval"]
    layout: Layout
    rows_read: int = 0
    conversations: int = 0
    rows_used: int = 0
    rows_after_weight: int = 0
    developer_turns: int = 0
    context_answers: int = 0
    reasoning_turns: int = 0
    thinking_turns: int = 0
    written_answers: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    lines: dict[str, list[int]] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    source_notes: list[str] = field(default_factory=list)
    unused_columns: Counter[str] = field(default_factory=Counter)
    scores: dict[str, tuple[float, float]] = field(default_factory=dict)
    odd: Counter[str] = field(default_factory=Counter)
    odd_lines: dict[str, list[int]] = field(default_factory=dict)
    odd_examples: dict[str, str] = field(default_factory=dict)

    def skip(self, line: int, reason: str, detail: str = "", row: object = None) -> None:
        """Count a row that is left out. The first ``row`` of each reason becomes its example."""
        self.reasons[reason] += 1
        lines = self.lines.setdefault(reason, [])
        if len(lines) < MAX_LINES:
            lines.append(line)
        if reason not in self.details:
            self.details[reason] = detail
            self.examples[reason] = _excerpt(row)

    def note_odd(self, line: int, fault: str, excerpt: str) -> None:
        """Count an encoding fault of a kept row, at most once per line."""
        lines = self.odd_lines.setdefault(fault, [])
        if lines and lines[-1] == line:
            return
        self.odd[fault] += 1
        self.odd_examples.setdefault(fault, excerpt)
        if len(lines) < MAX_LINES:
            lines.append(line)

    def report(self) -> FileReport:
        skipped = tuple(
            SkipCount(reason, rows, tuple(self.lines[reason]), self.details[reason], self.examples[reason])
            for reason, rows in self.reasons.most_common()
        )
        return FileReport(
            name=self.name,
            task=self.task,
            role=self.role,
            layout=str(self.layout),
            rows_read=self.rows_read,
            conversations=self.conversations,
            rows_used=self.rows_used,
            skipped=skipped,
            weight=self.weight,
            rows_after_weight=self.rows_after_weight,
            unused_columns=dict(self.unused_columns.most_common(_SHOWN_COLUMNS)),
        )


class Labels:
    """Counts the rows of each label on each side. After 10,000 different labels it ignores new ones, which are free text."""

    def __init__(self) -> None:
        self.train: Counter[str] = Counter()
        self.eval: Counter[str] = Counter()
        self.eval_positions: dict[str, str] = {}

    def note(self, side: str, label: str, position: str) -> None:
        """Count a row; ``side`` is ``train`` or ``eval``."""
        counts = self.train if side == "train" else self.eval
        if label in counts or len(counts) < _MAX_LABELS:
            counts[label] += 1
            if side == "eval":
                self.eval_positions.setdefault(label, position)

    def is_full(self, side: str) -> bool:
        """Return whether further labels of a side are not counted, so that a label that is not here may occur."""
        return len(self.train if side == "train" else self.eval) >= _MAX_LABELS


def _excerpt(row: object) -> str:
    if row is None:
        return ""
    is_json = isinstance(row, Mapping | list | tuple)
    text = json.dumps(row, ensure_ascii=False, default=_as_text) if is_json else str(row)
    text = _BASE64.sub(r"\1...", text)
    return _clean(text if len(text) <= _EXAMPLE_CHARS else text[:_EXAMPLE_CHARS] + "...")


def _as_text(value: object) -> str:
    return f"{len(value):,} bytes" if isinstance(value, bytes) else str(value)


def _clean(text: str) -> Any:
    """Replace halves of surrogate pairs, which no file can hold."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
