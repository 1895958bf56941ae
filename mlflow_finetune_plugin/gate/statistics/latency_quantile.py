"""Bound the 95th percentile of latencies from counts. The bounds hold after every answer, so they may be read at any time.

An answer is slow at t if it took at least t. The percentile is at least t where more than 5 % of the answers are slow at t,
and at most t where fewer are. Both are tested by betting (``failure_rate``, ``sequential``): the lower end is the highest
t at which the first test has reached 1/alpha, the upper end the lowest t at which the second has. The share that is slow
falls in t, and so do the capitals, so an end is wrong only if one test at one t is wrong: each end errs with at most alpha
over all times, for any distribution and without a correction for the many t. Sources: Howard and Ramdas 2022, "Sequential
estimation of quantiles with applications to A/B testing and best-arm identification", Bernoulli 28, 1704-1728; Waudby-Smith
and Ramdas 2024, JRSS B 86, 1-27. Latencies are counted in buckets, so the ends are edges of buckets, 2 % apart, and the
rounding is on the safe side.

The answers may depend on earlier ones only through the time at which they are read: a load that makes all answers of an hour
slow is evidence of a slow version. Comparing two versions on the same router and in the same windows guards against that.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.evaluation.results import Interval
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered, rate_stakes
from mlflow_finetune_plugin.gate.statistics.sequential import beta_stakes, mixed_log_capital
from mlflow_finetune_plugin.store.latency_counts import EDGES_MS, LatencyCounts, edge_from

SLOW_SHARE = 0.05
"""The share of answers that take longer than the 95th percentile."""

FARTHEST_FORECAST = 100_000
"""The most answers in all that a forecast considers."""

LEAST_EARLIER = 20
"""Answers from which the boundary of slow answers is estimated; one from fewer would often be far from the percentile."""

_OUTCOMES = np.array([0.0, 1.0])
_ABOVE = rate_stakes(SLOW_SHARE)
_BELOW = beta_stakes(1, 1)


def p95_interval(counts: LatencyCounts, *, alpha: float, repeats: float = 1.0) -> Interval:
    """Return the 95th percentile in ms with ends that each hold at all times at error ``alpha``.

    Args:
        counts: The answers.
        alpha: The error of each end.
        repeats: Count every answer so often, for a forecast.

    Raises:
        GateError: There are no answers, or ``alpha`` is not below 1/2.
    """
    if not counts.total or not 0 < alpha < 0.5:
        raise GateError(
            f"the p95 of {counts.total} answers at an error of {alpha} cannot be bounded; fix: measure answers"
        )
    edges = range(counts.first, counts.first + len(counts.counts) + 1)
    slow = np.array([*np.cumsum(counts.counts[::-1], dtype=np.float64)[::-1], 0.0]) * repeats  # at each edge
    total, limit = counts.total * repeats, -math.log(alpha)
    lowest_below = bisect_left(slow, True, key=lambda k: _log_below(total, k) >= limit)
    first_not_above = bisect_left(slow, True, key=lambda k: _log_above(total, k) < limit)
    high_edge = edges[lowest_below] if lowest_below < len(edges) else len(EDGES_MS)
    high = EDGES_MS[high_edge] if high_edge < len(EDGES_MS) else math.inf
    low = EDGES_MS[edges[first_not_above - 1]] if first_not_above else 0.0
    return Interval(counts.quantile_ms(1 - SLOW_SHARE), low, high, f"betting, {1 - 2 * alpha:.4g} at all times")


def p95_ratio(candidate: LatencyCounts, champion: LatencyCounts, *, alpha: float, repeats: float = 1.0) -> Interval:
    """Return the candidate's 95th percentile divided by the champion's. Each end holds at all times at error ``alpha``:
    the two percentiles share it.

    Raises:
        GateError: One side has no answers, or ``alpha`` is not below 1/2.
    """
    above, below = (p95_interval(side, alpha=alpha / 2, repeats=repeats) for side in (candidate, champion))
    high = above.high / below.low if below.low else math.inf
    return Interval(above.value / below.value, above.low / below.high, high, f"{above.method}, of both")


def answers_still_needed(is_decided: Callable[[float], bool], answers: int) -> int | None:
    """Estimate how many more answers decide if they are distributed like those so far.

    Args:
        is_decided: Whether it is decided when every answer is counted so often.
        answers: The answers so far.

    Returns:
        None where more than ``FARTHEST_FORECAST`` answers in all are needed.
    """
    totals = range(answers, FARTHEST_FORECAST + 1)
    least = bisect_left(totals, True, key=lambda total: is_decided(total / answers))
    return least if least < len(totals) else None


def over_budget(counts: LatencyCounts, budget_ms: float) -> Answered:
    """Return the answers, with those that took longer than the budget as failed. At most 5 % may be."""
    return Answered(counts.total, counts.from_edge(edge_from(budget_ms)))


@dataclass(frozen=True)
class LatencyWindow:
    """The answers of two versions on one router in the same time.

    Args:
        candidate: The version that may be too slow.
        champion: The version that it is compared with.
        earlier: Answers of the champion on this router before the window.
    """

    candidate: LatencyCounts
    champion: LatencyCounts
    earlier: LatencyCounts

    def slow(self, times: float) -> tuple[Answered, Answered] | None:
        """Return the answers of both sides, with the slow ones as failed; None where nothing can be compared.

        The champion's are slow above its 95th percentile of earlier, and the candidate's above ``times`` that. A candidate
        that is at most ``times`` as slow has no larger share of slow answers, whatever this boundary is. The boundary
        must not depend on the window itself, so it comes from earlier answers.
        """
        if not (self.candidate.total and self.champion.total and self.earlier.total >= LEAST_EARLIER):
            return None
        edge = min(self.earlier.quantile_bucket(1 - SLOW_SHARE) + 1, len(EDGES_MS) - 1)
        slow = self.candidate.from_edge(edge_from(times * EDGES_MS[edge]))
        return Answered(self.candidate.total, slow), Answered(self.champion.total, self.champion.from_edge(edge))


def _log_above(total: float, slow: float) -> float:
    """Return the log of the capital that bets on more than 5 % slow answers."""
    counts: NDArray[np.float64] = np.array([total - slow, slow])
    return mixed_log_capital(_OUTCOMES, counts, _ABOVE, SLOW_SHARE)


def _log_below(total: float, slow: float) -> float:
    """Return the log of the capital that bets on fewer than 5 % slow answers."""
    counts: NDArray[np.float64] = np.array([slow, total - slow])
    return mixed_log_capital(_OUTCOMES, counts, _BELOW, 1 - SLOW_SHARE)
