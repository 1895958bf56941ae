"""A finding as RFC 8259 has it: no number is infinite there, so an open end of an interval is null."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

from mlflow_finetune_plugin.types import Interval


class Told(Protocol):
    """What findings of the gate and of the watch have in common."""

    @property
    def name(self) -> str: ...
    @property
    def outcome(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def bound(self) -> float | None: ...
    @property
    def interval(self) -> Interval | None: ...
    @property
    def details(self) -> Mapping[str, Any]: ...


def finding_json(finding: Told) -> dict[str, Any]:
    interval = finding.interval
    return {
        "name": finding.name,
        "outcome": finding.outcome,
        "reason": finding.reason,
        "bound": finding.bound,
        "estimate": None if interval is None else interval.value,
        "interval": None if interval is None else [_bounded(interval.low), _bounded(interval.high)],
        "method": None if interval is None else interval.method,
        "details": dict(finding.details),
    }


def _bounded(end: float) -> float | None:
    return end if math.isfinite(end) else None
