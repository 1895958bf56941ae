"""How long a version's answers took, as routers log it: a tag of the version per router, newest answers only."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlflow_finetune_plugin.errors import GateError

TAG = "finetune.latency."
"""And the router's name, of the version."""
LEAST_ANSWERS = 30
OLDEST_S = 7 * 86400.0


@dataclass(frozen=True)
class LatencySummary:
    """Of the last ``answers`` answers of a version that did not fail, milliseconds from the request to its end.

    ``since``, ``until``: epoch seconds, UTC, of the first and last of them.
    """

    answers: int
    p50_ms: float
    p95_ms: float
    since: float
    until: float

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def summary_of(times: Sequence[tuple[float, float]]) -> LatencySummary:
    """``times``: (epoch seconds of the end, milliseconds), the first the oldest; at least one."""
    took = sorted(ms for _, ms in times)
    middle, high = took[len(took) // 2], took[math.ceil(0.95 * len(took)) - 1]
    return LatencySummary(len(took), round(middle, 1), round(high, 1), round(times[0][0], 1), round(times[-1][0], 1))


def logged_latency(tags: Mapping[str, str], what: str, notes: list[str]) -> float | None:
    """The 95th percentile in ms, of the router that gave most answers of late; None where no router told enough.

    Percentiles of several routers cannot be put together, so one's are taken. Raises GateError for a tag that is none.
    """
    found: dict[str, LatencySummary] = {}
    for key, text in tags.items():
        if key.startswith(TAG):
            found[key.removeprefix(TAG)] = _parse(text, f"{what}: tag {key}")
    fresh = {name: one for name, one in found.items() if time.time() - one.until <= OLDEST_S}
    enough = {name: one for name, one in fresh.items() if one.answers >= LEAST_ANSWERS}
    if not enough:
        most = max((one.answers for one in fresh.values()), default=0)
        notes.append(
            f"{what}: no router told of {LEAST_ANSWERS} answers of the last {OLDEST_S / 86400:g} days (found {most}); "
            "fix: serve it, or promote --endpoint URL, which asks for some"
        )
        return None
    name, best = max(enough.items(), key=lambda item: item[1].answers)
    notes.append(f"{what}: p95 {best.p95_ms:g} ms of {best.answers:,} answers, told by router {name}")
    return best.p95_ms


def _parse(text: str, what: str) -> LatencySummary:
    try:
        told: dict[str, Any] = json.loads(text)
        found = LatencySummary(**told)
        if not all(math.isfinite(value) for value in asdict(found).values()) or not 0 < found.p50_ms <= found.p95_ms:
            raise ValueError("its numbers are none")
    except (ValueError, TypeError) as error:
        raise GateError(f"{what}: is no summary of latencies: {error}; fix: delete the tag") from error
    return found
