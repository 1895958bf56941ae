"""Paired intervals for the gain of an adapter over its base: numbers in, an ``Interval`` out.

Binary rows get Tango's score interval. Everything else gets a bootstrap over rows: each resample draws the same rows
for both sides, and additive statistics turn a resample into one line of a matrix product. How often these intervals
hold the true gain is measured by ``benchmarks/interval_coverage.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import norm, t

from mlflow_finetune_plugin.errors import FinetuneError
from mlflow_finetune_plugin.types import Interval

Array = NDArray[np.float64]
Score = Callable[[Array], Array]
"""Maps summed statistics (..., k) to scores (...)."""

BootstrapMethod = Literal["percentile", "expanded", "bca"]

_WEIGHTS_PER_CHUNK = 2**21
"""Bootstrap weights held at once: 16 MiB of float64."""


def paired_binary_interval(base: ArrayLike, adapter: ArrayLike, confidence: float = 0.95) -> Interval:
    """Interval of the adapter's share of ones minus the base's, both measured on the same rows.

    Inverts the score test of Tango 1998, "Equivalence test and confidence interval for the difference in proportions
    for the paired-sample design", Statistics in Medicine 17, 891-908. Stays inside [-1, 1] and has a width also where
    no row differs.
    """
    base_hits, adapter_hits = _paired(base, adapter)
    if base_hits.ndim != 1 or not np.isin([base_hits, adapter_hits], (0.0, 1.0)).all():
        raise FinetuneError("a binary interval takes one 0 or 1 per row; fix: use paired_bootstrap_interval for others")
    rows = len(base_hits)
    gained = int(((adapter_hits == 1) & (base_hits == 0)).sum())
    lost = int(((adapter_hits == 0) & (base_hits == 1)).sum())
    z = float(norm.ppf((1 + confidence) / 2))

    def excess(delta: float, side: float) -> float:
        return _tango_statistic(gained, lost, rows, delta) - side * z

    edge = 1 - 1e-12
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
    method: BootstrapMethod = "expanded",
) -> Interval:
    """Interval of the gain in ``score`` from additive statistics per row, (n, k) on each side; positive: adapter better.

    ``expanded``, the default, is the percentile interval with its tails moved out by what Student's t and n/(n-1)
    ask for (Hesterberg 2015, "What Teachers Should Know About the Bootstrap", The American Statistician 69, 371-386):
    the plain percentile interval is too short on few rows. ``bca`` is Efron 1987. One row has no spread, so its
    interval is unbounded; rows that all gain the same give an interval of no width, and ``method`` says so.
    """
    base, adapter = _paired(base_statistics, adapter_statistics)
    sign = 1.0 if higher_is_better else -1.0

    def gain(base_sums: Array, adapter_sums: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return sign * (np.asarray(score(adapter_sums)) - np.asarray(score(base_sums)))

    value = float(gain(base.sum(axis=0), adapter.sum(axis=0)))
    if not math.isfinite(value):
        raise FinetuneError("the score of all rows together is not a number; fix: see that the rows hold any tokens")
    if len(base) == 1:
        return Interval(value=value, low=-math.inf, high=math.inf, method="none: one row has no spread")
    resampled = np.concatenate(
        [gain(weights @ base, weights @ adapter) for weights in _resample_weights(len(base), n_resamples, seed)]
    )
    if method == "bca":
        without_row = gain(base.sum(axis=0) - base, adapter.sum(axis=0) - adapter)
        low, high = _bca_levels(value, resampled, without_row, confidence)
        return _from_levels(value, resampled, low, high, "BCa bootstrap", n_resamples)
    low, high = _expanded_levels(len(base), confidence) if method == "expanded" else _plain_levels(confidence)
    return _from_levels(
        value, resampled, low, high, f"{method} percentile bootstrap".removeprefix("percentile "), n_resamples
    )


def paired_recompute_interval(
    gain: Callable[[NDArray[np.intp]], float], rows: int, seed: int, n_resamples: int = 500, confidence: float = 0.95
) -> Interval:
    """Interval of ``gain(row_indices)`` for a metric without additive statistics: it is computed anew on each resample."""
    value = float(gain(np.arange(rows)))
    if not math.isfinite(value):
        raise FinetuneError(f"the gain over all {rows} rows is {value}; fix: see that the metric returns numbers")
    if rows == 1:
        return Interval(value=value, low=-math.inf, high=math.inf, method="none: one row has no spread")
    rng = np.random.default_rng(seed)
    resampled = np.array([gain(rng.integers(rows, size=rows)) for _ in range(n_resamples)])
    low, high = _expanded_levels(rows, confidence)
    return _from_levels(value, resampled, low, high, "expanded percentile bootstrap, recomputed", n_resamples)


def mean_interval(base_sums: ArrayLike, adapter_sums: ArrayLike, seed: int = 0, n_resamples: int = 2000) -> Interval:
    """Interval of the adapter's mean minus the base's, rows being [sum, count] of a text: positive = the mean grew.

    With nats and tokens this is forgetting in nats per token. Texts are resampled, not tokens, because the tokens of
    one text are not independent.
    """
    return paired_bootstrap_interval(
        base_sums, adapter_sums, _ratio, higher_is_better=True, seed=seed, n_resamples=n_resamples
    )


def _ratio(sums: Array) -> Array:
    return np.asarray(sums[..., 0] / sums[..., 1])


def _paired(base: ArrayLike, adapter: ArrayLike) -> tuple[Array, Array]:
    base_array, adapter_array = np.asarray(base, dtype=np.float64), np.asarray(adapter, dtype=np.float64)
    if base_array.shape != adapter_array.shape:
        raise FinetuneError(
            f"base has shape {base_array.shape}, adapter {adapter_array.shape}; fix: both must answer the same rows"
        )
    if len(base_array) == 0:
        raise FinetuneError("no rows to compare; fix: hold out at least one row for evaluation")
    for side, array in (("base", base_array), ("adapter", adapter_array)):
        broken = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
        if len(broken):
            raise FinetuneError(
                f"{len(broken)} of {len(array)} rows are not finite on the {side}'s side, the first is row {broken[0]}; "
                "fix: look for overflow in the model's outputs (float16?) or in the metric"
            )
    return base_array, adapter_array


def _tango_statistic(gained: int, lost: int, rows: int, delta: float) -> float:
    """Score statistic of the hypothesis that the difference is ``delta``; falls as ``delta`` rises."""
    a = 2.0 * rows
    b = -gained - lost + (2 * rows - gained + lost) * delta
    c = -lost * delta * (1 - delta)
    lost_share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = rows * (2 * lost_share + delta * (1 - delta))
    distance = gained - lost - rows * delta
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def _resample_weights(rows: int, n_resamples: int, seed: int) -> Iterator[Array]:
    """How often each resample draws each row, (resamples in this chunk, rows): multinomial, by counting drawn rows."""
    rng = np.random.default_rng(seed)
    per_chunk = max(1, _WEIGHTS_PER_CHUNK // rows)
    for start in range(0, n_resamples, per_chunk):
        size = min(per_chunk, n_resamples - start)
        drawn = rng.integers(rows, size=(size, rows)) + rows * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows).astype(np.float64)


def _plain_levels(confidence: float) -> tuple[float, float]:
    return (1 - confidence) / 2, (1 + confidence) / 2


def _expanded_levels(rows: int, confidence: float) -> tuple[float, float]:
    reach = math.sqrt(rows / (rows - 1)) * float(t.ppf((1 + confidence) / 2, rows - 1))
    return float(norm.cdf(-reach)), float(norm.cdf(reach))


def _bca_levels(value: float, resampled: Array, without_row: Array, confidence: float) -> tuple[float, float]:
    below = (np.sum(resampled < value) + np.sum(resampled == value) / 2) / len(resampled)
    bias = float(norm.ppf(np.clip(below, 1 / len(resampled), 1 - 1 / len(resampled))))
    deviation = without_row.mean() - without_row
    spread = float((deviation**2).sum() ** 1.5)
    acceleration = float((deviation**3).sum()) / (6 * spread) if spread > 0 else 0.0
    z = bias + norm.ppf(np.array(_plain_levels(confidence)))
    low, high = norm.cdf(bias + z / (1 - acceleration * z))
    return float(low), float(high)


def _from_levels(value: float, resampled: Array, low: float, high: float, method: str, n_resamples: int) -> Interval:
    broken = int((~np.isfinite(resampled)).sum())
    if broken:
        raise FinetuneError(
            f"the score is not a number on {broken} of {n_resamples} bootstrap resamples; fix: leave out rows without tokens"
        )
    bounds = np.quantile(resampled, [low, high])
    spread = "" if np.ptp(resampled) > 0 else ", no variation between rows"
    return Interval(
        value=value, low=float(bounds[0]), high=float(bounds[1]), method=f"{method}, {n_resamples} resamples{spread}"
    )
