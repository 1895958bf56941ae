"""How a version answered, as routers tell the registry: how often it failed, how long it took; a tag per router."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.store.names import SERVED_TAG

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


@dataclass(frozen=True)
class ServedSummary:
    """Of one router: all answers of a version that ended since ``begun`` (epoch s), those that failed among them.

    What failed is the version's or its engine's fault. What never became an answer is not counted: a client that went
    away, a request that was refused, shadow traffic. ``recent``: the newest that did not fail; None when none did.
    A router that is started again begins anew.
    """

    begun: float
    answers: int
    failed: int
    recent: LatencySummary | None

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def latency_of(times: Sequence[tuple[float, float]]) -> LatencySummary:
    """``times``: (epoch seconds of the end, milliseconds), the first the oldest; at least one."""
    took = sorted(ms for _, ms in times)
    middle, high = took[len(took) // 2], took[math.ceil(0.95 * len(took)) - 1]
    return LatencySummary(len(took), round(middle, 1), round(high, 1), round(times[0][0], 1), round(times[-1][0], 1))


def served(tags: Mapping[str, str], what: str) -> dict[str, ServedSummary]:
    """By the router's name. ``what`` has the tags, for messages. Raises GateError for a tag that is no summary."""
    return {
        key.removeprefix(SERVED_TAG): _parse(text, f"{what}: tag {key}")
        for key, text in tags.items()
        if key.startswith(SERVED_TAG)
    }


Tagged = tuple[Mapping[str, str], str]
"""A version's tags, and what to call it in messages."""


def logged_latencies(
    tagged: Tagged, other: Tagged | None, notes: list[str], fix: str = "serve it"
) -> tuple[float | None, float | None]:
    """95th percentiles in ms of both, told by one router, for routers' clocks, loads and machines differ; None: not told.

    Of the routers that told enough of both the one that told most is taken. ``fix`` goes into the note where there are too
    few. Raises GateError for a tag that is none.
    """
    first = _told_enough(tagged, notes, fix)
    if other is None:
        return _by(first, _most(first), tagged, notes), None
    second = _told_enough(other, notes, fix)
    common = {
        name: min(first[name], second[name], key=lambda summary: summary.answers)
        for name in first.keys() & second.keys()
    }
    if first and second and not common:
        notes.append(
            f"no router told enough of both {tagged[1]} and {other[1]}, so they are not compared; fix: serve both by one"
        )
    if not common:
        return _by(first, _most(first), tagged, notes), None
    name = _most(common)
    return _by(first, name, tagged, notes), _by(second, name, other, notes)


def _told_enough(side: Tagged, notes: list[str], fix: str) -> dict[str, LatencySummary]:
    recent = {name: summary.recent for name, summary in served(*side).items() if summary.recent is not None}
    fresh = {name: summary for name, summary in recent.items() if time.time() - summary.until <= OLDEST_S}
    enough = {name: summary for name, summary in fresh.items() if summary.answers >= LEAST_ANSWERS}
    if not enough:
        most = max((summary.answers for summary in fresh.values()), default=0)
        notes.append(
            f"{side[1]}: no router told of {LEAST_ANSWERS} answers of the last {OLDEST_S / 86400:g} days (found {most}); "
            f"fix: {fix}"
        )
    return enough


def _most(summaries: Mapping[str, LatencySummary]) -> str | None:
    return max(summaries, key=lambda name: summaries[name].answers, default=None)


def _by(summaries: Mapping[str, LatencySummary], name: str | None, side: Tagged, notes: list[str]) -> float | None:
    if name is None:
        return None
    notes.append(
        f"{side[1]}: p95 {summaries[name].p95_ms:g} ms of {summaries[name].answers:,} answers, told by router {name}"
    )
    return summaries[name].p95_ms


def _parse(text: str, what: str) -> ServedSummary:
    try:
        content: dict[str, Any] = json.loads(text)
        recent = content["recent"]
        summary = ServedSummary(**{**content, "recent": None if recent is None else LatencySummary(**recent)})
        _check(summary)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise GateError(f"{what}: is no summary of answers: {error}; fix: delete the tag") from error
    return summary


def _check(summary: ServedSummary) -> None:
    counts = [summary.answers, summary.failed] + ([summary.recent.answers] if summary.recent is not None else [])
    if not all(type(count) is int for count in counts) or not 0 <= summary.failed <= summary.answers:
        raise ValueError("its counts are none")
    recent = summary.recent
    times = [] if recent is None else [recent.p50_ms, recent.p95_ms, recent.since, recent.until]
    if not all(math.isfinite(value) for value in [summary.begun, *times]):
        raise ValueError("its numbers are none")
    if recent is not None and not (
        0 < recent.p50_ms <= recent.p95_ms and 0 < recent.answers <= summary.answers - summary.failed
    ):
        raise ValueError("its latencies are none")
