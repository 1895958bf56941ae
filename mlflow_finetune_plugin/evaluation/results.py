"""What the rooms hand each other: plain frozen records, standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, str]
"""One chat turn: ``{"role": "system" | "user" | "assistant", "content": text}``."""


@dataclass(frozen=True)
class EvalRow:
    """One held-out question, rendered exactly as training renders it.

    ``prompt_ids`` end where the assistant starts to speak; ``completion_ids`` are the reference answer's tokens
    including the end-of-turn token; ``reference`` is the bare answer text that metrics compare with.
    """

    messages: tuple[Message, ...]
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    reference: str
    task: str
    source: str
    line: int


def answer_room(rows: Sequence[EvalRow]) -> int:
    """Tokens that an answer may have: the longest reference's, and a few for one that is longer and wrong."""
    return max(len(row.completion_ids) for row in rows) + 8


@dataclass(frozen=True)
class Interval:
    """A point estimate with its two-sided 95 % interval; ``method`` names how it was computed."""

    value: float
    low: float
    high: float
    method: str


@dataclass(frozen=True)
class MetricResult:
    """Base and adapter under one metric. ``gain`` is positive when the adapter is better, also for metrics where less is better."""

    name: str
    base: float
    adapter: float
    gain: Interval
    higher_is_better: bool
    rows: int


@dataclass(frozen=True)
class EvalReport:
    """The proof: metrics with paired intervals, forgetting in nats per token, one record per held-out row.

    ``tasks`` holds the metrics of each task's own rows, when there are several.
    """

    metrics: tuple[MetricResult, ...]
    forgetting: Interval | None
    rows: tuple[dict[str, Any], ...] = field(repr=False)
    tasks: dict[str, tuple[MetricResult, ...]] = field(default_factory=dict)
