"""Compute paired intervals for the gain of an adapter over its base.

Binary rows get Tango's score interval. Everything else gets a bootstrap over rows: each resample draws the same rows
for both sides, and additive statistics turn a resample into one line of a matrix product. How often these intervals
hold the true gain is measured by ``benchmarks/interval_coverage.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlflow_finetune_plugin.errors import FinetuneError
from mlflow_finetune_plugin.evaluation.results import Interval

Array = NDArray[np.float64]
Score = Callable[[Array], Array]
"""Maps summed statistics, (..., k), to scores, (...)."""

_USUAL_CONFIDENCE, _LEAST_BEYOND = 0.95, 10
"""Above the usual confidence, so many resamples must be beyond a quantile for its place to be reliable."""

_WEIGHTS_PER_CHUNK = 2**21
"""Bootstrap weights in memory at once: 16 MiB of float64."""


def paired_binary_interval(base: ArrayLike, adapter: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the interval of the adapter's share of ones minus the base's, both measured on the same rows.

    Inverts the score test of Tango 1998, "Equivalence test and confidence interval for the difference in proportions
    for the paired-sample design", Statistics in Medicine 17, 891-908. The interval stays inside [-1, 1] and has a
    width even if no row differs.
    """
    from scipy.optimize import brentq  # here, because a training imports this module long before its proof
    from scipy.special import ndtri

    base_hits, adapter_hits = _paired(base, adapter)
    if base_hits.ndim != 1 or not np.isin([base_hits, adapter_hits], (0.0, 1.0)).all():
        raise FinetuneError(
            "a binary interval needs one 0 or 1 per row; fix: use paired_bootstrap_interval for other values"
        )
    rows = len(base_hits)
    gained = int(((adapter_hits == 1) & (base_hits == 0)).sum())
    lost = int(((adapter_hits == 0) & (base_hits == 1)).sum())
    z = float(ndtri((1 + confidence) / 2))

    def excess(delta: float, side: float) -> float:
        return _tango_statistic(gained, lost, rows, delta) - side * z

    edge = 1 - 1e-12
    # At the edges the score test has no root: every row was lost, or every row was gained.
    low = -1.0 if lost == rows else brentq(excess, -edge, edge, args=(1.0,))
    high = 1.0 if gained == rows else brentq(excess, -edge, edge, args=(-1.0,))
    return Interval(value=(gained - lost) / rows, low=low, high=high, method="Tango 1998 score")


def paired_bootstrap_interval(
    base_statistics: ArrayLike,
    adapter_statistics: ArrayLike,
    score: Score,
    higher_is_better: bool,
    seed: int,
    n_resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Return the interval of the gain in ``score``; positive means that the adapter is better.

    The statistics are additive and have the shape (rows, k) on each side.

    The percentile interval with its tails moved out by what Student's t and n/(n-1) ask for (Hesterberg 2015, "What
    Teachers Should Know About the Bootstrap", The American Statistician 69, 371-386), because the plain one is too
    short on few rows; the benchmark compares it with that one and with BCa. One row has no spread, so its interval is
    unbounded. Rows that all gain the same give an interval of no width, and ``method`` says so.
    """
    base, adapter = _paired(base_statistics, adapter_statistics)
    gain = _gain(score, higher_is_better)
    value = float(gain(base.sum(axis=0), adapter.sum(axis=0)))
    if not math.isfinite(value):
        raise FinetuneError(f"the gain over all {len(base)} rows is {value}; fix: check that the rows have tokens")
    if len(base) == 1:
        return _unbounded(value)
    resampled = resampled_gains(base, adapter, gain, seed, n_resamples)
    return _expanded_percentile(value, resampled, len(base), confidence, "expanded percentile bootstrap")


def paired_recompute_interval(
    gain: Callable[[NDArray[np.intp]], float], rows: int, seed: int, n_resamples: int = 500, confidence: float = 0.95
) -> Interval:
    """Return the interval of ``gain(row_indices)`` for a metric without additive statistics, computed again on each resample."""
    value = float(gain(np.arange(rows)))
    if not math.isfinite(value):
        raise FinetuneError(f"the gain over all {rows} rows is {value}; fix: check that the metric returns numbers")
    if rows == 1:
        return _unbounded(value)
    rng = np.random.default_rng(seed)
    resampled = np.array([gain(rng.integers(rows, size=rows)) for _ in range(n_resamples)])
    return _expanded_percentile(value, resampled, rows, confidence, "expanded percentile bootstrap, recomputed")


def widest(first: Interval, second: Interval) -> Interval:
    """Return the interval of ``first`` that also holds ``second``: one allows for few rows, the other for clusters."""
    method = f"{first.method} and {second.method}"
    return Interval(first.value, min(first.low, second.low), max(first.high, second.high), method)


def mean_interval(base_sums: ArrayLike, adapter_sums: ArrayLike, seed: int = 0, n_resamples: int = 2000) -> Interval:
    """Return the interval of the adapter's mean minus the base's; each row is the [sum, count] of a text.

    With nats and tokens this is forgetting in nats per token: positive means worse. Texts are resampled, not tokens, because the tokens of
    one text are not independent.
    """
    return paired_bootstrap_interval(
        base_sums, adapter_sums, _ratio, higher_is_better=True, seed=seed, n_resamples=n_resamples
    )


def resampled_gains(
    base: Array, adapter: Array, gain: Callable[[Array, Array], Array], seed: int, n_resamples: int
) -> Array:
    """Return ``gain(base_sums, adapter_sums)`` on resamples that draw the same rows for both sides, (n_resamples,)."""
    rows = len(base)
    rng = np.random.default_rng(seed)
    per_chunk = max(1, _WEIGHTS_PER_CHUNK // rows)
    gains = []
    for start in range(0, n_resamples, per_chunk):
        size = min(per_chunk, n_resamples - start)
        drawn = rng.integers(rows, size=(size, rows)) + rows * np.arange(size)[:, None]
        # The weights are how often each resample draws each row. Counting is faster than numpy's multinomial.
        weights = np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows).astype(np.float64)
        gains.append(gain(weights @ base, weights @ adapter))
    return np.concatenate(gains)


def expanded_levels(rows: int, confidence: float) -> tuple[float, float]:
    """Return the quantile levels of Hesterberg's expanded percentile interval."""
    from scipy.special import ndtr

    reach = _reach(rows, confidence)
    return float(ndtr(-reach)), float(ndtr(reach))


def _reach(rows: int, confidence: float) -> float:
    """Return how many standard deviations of resamples an interval reaches, by Student's t and n / (n - 1)."""
    from scipy.special import stdtrit

    return math.sqrt(rows / (rows - 1)) * float(stdtrit(rows - 1, (1 + confidence) / 2))


def _ratio(sums: Array) -> Array:
    return np.asarray(sums[..., 0] / sums[..., 1])


def _paired(base: ArrayLike, adapter: ArrayLike) -> tuple[Array, Array]:
    base_array, adapter_array = np.asarray(base, dtype=np.float64), np.asarray(adapter, dtype=np.float64)
    if base_array.shape != adapter_array.shape:
        raise FinetuneError(
            f"base has shape {base_array.shape}, adapter {adapter_array.shape}; fix: both must answer the same rows"
        )
    if len(base_array) == 0:
        raise FinetuneError("there are no rows to compare; fix: hold out at least one row for evaluation")
    for side, array in (("base", base_array), ("adapter", adapter_array)):
        broken = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
        if len(broken):
            raise FinetuneError(
                f"{len(broken)} of {len(array)} rows of the {side} have values that are not finite, first row {broken[0]}; "
                "fix: check the model's outputs (float16?) and the metric for overflow"
            )
    return base_array, adapter_array


def _tango_statistic(gained: int, lost: int, rows: int, delta: float) -> float:
    """Return the score statistic of the hypothesis that the difference is ``delta``; it falls as ``delta`` rises."""
    a = 2.0 * rows
    b = -gained - lost + (2 * rows - gained + lost) * delta
    c = -lost * delta * (1 - delta)
    lost_share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = rows * (2 * lost_share + delta * (1 - delta))
    distance = gained - lost - rows * delta
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def _gain(score: Score, higher_is_better: bool) -> Callable[[Array, Array], Array]:
    sign = 1.0 if higher_is_better else -1.0

    def gain(base_sums: Array, adapter_sums: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # the caller reports sums of zero tokens
            return np.asarray(sign * (score(adapter_sums) - score(base_sums)))

    return gain


def _unbounded(value: float) -> Interval:
    return Interval(value=value, low=-math.inf, high=math.inf, method="none: one row has no spread")


def _expanded_percentile(value: float, resampled: Array, rows: int, confidence: float, method: str) -> Interval:
    broken = int((~np.isfinite(resampled)).sum())
    if broken:
        raise FinetuneError(
            f"the gain is not a number on {broken} of {len(resampled)} bootstrap resamples; "
            "fix: remove rows without tokens"
        )
    levels = expanded_levels(rows, confidence)
    low, high = np.quantile(resampled, levels)
    if confidence > _USUAL_CONFIDENCE and levels[0] * len(resampled) < _LEAST_BEYOND:
        # So few resamples are beyond such a quantile that its place is luck: the normal distribution widens it.
        reach = _reach(rows, confidence) * float(np.std(resampled))
        low, high = min(low, value - reach), max(high, value + reach)
        method += " and normal distribution"
    spread = "" if np.ptp(resampled) > 1e-12 * max(1.0, abs(value)) else ", no variation between rows"
    return Interval(
        value=value, low=float(low), high=float(high), method=f"{method}, {len(resampled)} resamples{spread}"
    )
