"""The answers of a version as routers report them to the registry: failures and latencies, in one tag per router."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.store.latency_counts import LatencyCounts
from mlflow_finetune_plugin.store.names import SERVED_TAG

LEAST_ANSWERS = 30
OLDEST_S = 7 * 86400.0


@dataclass(frozen=True)
class LatencySummary:
    """The latencies of a version's last ``answers`` successful answers, in milliseconds from the request to its end.

    ``since`` and ``until`` are the epoch seconds (UTC) of the first and the last of them.
    """

    answers: int
    p50_ms: float
    p95_ms: float
    since: float
    until: float


@dataclass(frozen=True)
class ServedSummary:
    """One router's report: all answers of a version that ended since ``begun`` (epoch seconds), and how many of them
    failed.

    A failure is a fault of the version or its engine. Requests that never became an answer are not counted: a client
    that disconnected, a request that was refused, shadow traffic. ``latencies`` counts all successful answers; None where
    an older router wrote the report. ``first_answers`` and ``first_failed`` count each user once while a split is in force
    (``serving.router.first_answers``); None in the report of an older router. ``recent`` is for people and covers the newest successful answers; None without any.
    ``left_out`` is the number of further failures, of the API key with the most failures, which counts as one failure
    (``serving.router.key_failures``). A router that restarts begins a new count.
    """

    begun: float
    answers: int
    failed: int
    recent: LatencySummary | None
    latencies: LatencyCounts | None = None
    first_answers: int | None = None
    first_failed: int | None = None
    left_out: int = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))


def latency_of(times: Sequence[tuple[float, float]]) -> LatencySummary:
    """Summarise at least one answer. ``times`` holds (epoch seconds of the end, milliseconds), oldest first."""
    took = sorted(ms for _, ms in times)
    middle, high = took[len(took) // 2], took[math.ceil(0.95 * len(took)) - 1]
    return LatencySummary(len(took), round(middle, 1), round(high, 1), round(times[0][0], 1), round(times[-1][0], 1))


def served(tags: Mapping[str, str], what: str) -> dict[str, ServedSummary]:
    """Return the summaries by router name. ``what`` names the owner of the tags in messages.

    Raises:
        GateError: A tag is not a valid summary.
    """
    return {
        key.removeprefix(SERVED_TAG): _parse(text, f"{what}: tag {key}")
        for key, text in tags.items()
        if key.startswith(SERVED_TAG)
    }


Tagged = tuple[Mapping[str, str], str]
"""A version's tags, and its name in messages."""


def logged_latencies(
    tagged: Tagged, other: Tagged | None, notes: list[str], fix: str = "serve it"
) -> tuple[LatencyCounts | None, LatencyCounts | None]:
    """Return the latencies of both versions' answers as one router reports them; None if there are none.

    Clocks, load and machines of routers differ, so both must come from the same router. Of the routers with enough
    answers of both versions the one with the most is used.

    Args:
        tagged: The version.
        other: The version to compare with, or None.
        notes: Receives what was used, or why there is nothing.
        fix: The fix in the note about too few answers.

    Raises:
        GateError: A tag is not a valid summary.
    """
    first = _counted(tagged, notes, fix)
    if other is None:
        return _by(first, _most(first), tagged, notes), None
    second = _counted(other, notes, fix)
    common = {
        name: min(first[name], second[name], key=lambda counts: counts.total) for name in first.keys() & second.keys()
    }
    if first and second and not common:
        notes.append(
            f"no router reported enough answers of both {tagged[1]} and {other[1]}, so they are not compared; fix: serve both by one"
        )
    if not common:
        return _by(first, _most(first), tagged, notes), None
    name = _most(common)
    return _by(first, name, tagged, notes), _by(second, name, other, notes)


def _counted(side: Tagged, notes: list[str], fix: str) -> dict[str, LatencyCounts]:
    recent = {name: summary for name, summary in served(*side).items() if summary.recent is not None}
    fresh = {name: summary for name, summary in recent.items() if time.time() - _until(summary) <= OLDEST_S}
    counted = {name: summary.latencies for name, summary in fresh.items() if summary.latencies is not None}
    enough = {name: counts for name, counts in counted.items() if counts.total >= LEAST_ANSWERS}
    if fresh and not counted:
        routers = ", ".join(sorted(fresh))
        notes.append(f"{side[1]}: {routers} reported no counts of latencies; fix: restart it with this version")
    elif not enough:
        most = max((counts.total for counts in counted.values()), default=0)
        notes.append(
            f"{side[1]}: no router reported {LEAST_ANSWERS} answers of the last {OLDEST_S / 86400:g} days (found {most}); "
            f"fix: {fix}"
        )
    return enough


def _until(summary: ServedSummary) -> float:
    return summary.recent.until if summary.recent is not None else 0.0


def _most(counts: Mapping[str, LatencyCounts]) -> str | None:
    return max(counts, key=lambda name: counts[name].total, default=None)


def _by(counts: Mapping[str, LatencyCounts], name: str | None, side: Tagged, notes: list[str]) -> LatencyCounts | None:
    if name is None:
        return None
    p95_ms = counts[name].quantile_ms(0.95)
    notes.append(f"{side[1]}: p95 {p95_ms:g} ms of {counts[name].total:,} answers, reported by router {name}")
    return counts[name]


def _parse(text: str, what: str) -> ServedSummary:
    try:
        content: dict[str, Any] = json.loads(text)
        recent, latencies = content["recent"], content.get("latencies")
        parts = {
            "recent": None if recent is None else LatencySummary(**recent),
            "latencies": None if latencies is None else LatencyCounts(latencies["first"], tuple(latencies["counts"])),
        }
        summary = ServedSummary(**{**content, **parts})
        _check(summary)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise GateError(f"{what}: is not a summary of answers: {error}; fix: delete the tag") from error
    return summary


def _check(summary: ServedSummary) -> None:
    counts = [summary.answers, summary.failed, summary.left_out]
    counts += [summary.recent.answers] if summary.recent is not None else []
    if summary.first_answers is not None or summary.first_failed is not None:
        first = (summary.first_failed, summary.first_answers)
        most = summary.answers + summary.left_out
        if not all(type(count) is int for count in first) or not 0 <= first[0] <= first[1] <= most:  # type: ignore[operator]
            raise ValueError("its counts of first answers are none")
    if not all(type(count) is int for count in counts) or not 0 <= summary.failed <= summary.answers:
        raise ValueError("its counts are none")
    if summary.left_out < 0:
        raise ValueError("its counts are none")
    recent = summary.recent
    times = [] if recent is None else [recent.p50_ms, recent.p95_ms, recent.since, recent.until]
    if not all(math.isfinite(value) for value in [summary.begun, *times]):
        raise ValueError("its numbers are none")
    if recent is not None and not (
        0 < recent.p50_ms <= recent.p95_ms and 0 < recent.answers <= summary.answers - summary.failed
    ):
        raise ValueError("its latencies are none")
    if summary.latencies is not None and summary.latencies.total != summary.answers - summary.failed:
        raise ValueError("its counts of latencies are not those of its successful answers")
