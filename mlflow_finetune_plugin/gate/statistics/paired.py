"""Compare a candidate with a champion on the same rows: an interval of the difference, a p-value, a test of a margin.

Rows of 0 and 1 get Tango's score interval. Other scores, and all rows that share clusters, get a bootstrap-t interval
over rows or clusters. ``benchmarks/gate_errors.py`` measures how often these intervals contain the true difference.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.evaluation.intervals import paired_binary_interval, resampled_gains
from mlflow_finetune_plugin.evaluation.results import Interval
from mlflow_finetune_plugin.gate.statistics.bounded_mean import mean_lower_bound
from mlflow_finetune_plugin.gate.statistics.half_samples import half_sample_interval
from mlflow_finetune_plugin.gate.statistics.proportions import binomial_p

Array = NDArray[np.float64]

SHOWN_IDS = 3
"""Row ids named in a message."""

_BEYOND, _MOST_RESAMPLES = 20, 40_000
"""Resamples beyond each end of an interval, where its confidence needs more than usual; and the most of all."""

FARTHEST_FORECAST_ROWS = 1_000_000


@dataclass(frozen=True)
class PairedRows:
    """Scores of two models on the same rows, in the same order.

    ``clusters`` names the group that each row belongs to (a document, a dialogue); rows of one cluster are not independent.

    Raises:
        GateError: There are no rows, the lengths differ, a row id is repeated, or a score is not finite. It is a ValueError.
    """

    row_ids: tuple[str, ...]
    candidate: tuple[float, ...]
    champion: tuple[float, ...]
    clusters: tuple[Hashable, ...] | None = None

    def __post_init__(self) -> None:
        check_rows(self.row_ids, {"candidate": self.candidate, "champion": self.champion}, self.clusters)

    @classmethod
    def join(
        cls,
        candidate: Mapping[str, float],
        champion: Mapping[str, float],
        clusters: Mapping[str, Hashable] | None = None,
    ) -> PairedRows:
        """Join scores by row id. Raises GateError unless both sides, and ``clusters``, have the same row ids."""
        others = {"champion": set(champion)} | ({} if clusters is None else {"clusters": set(clusters)})
        for name, others_ids in others.items():
            odd = sorted(others_ids ^ set(candidate))
            if odd:
                raise GateError(
                    f"{len(odd)} rows are not on both sides (candidate: {len(candidate)}, {name}: {len(others_ids)}), "
                    f"the first: {', '.join(odd[:SHOWN_IDS])}; fix: evaluate both models on the same rows"
                )
        ids = tuple(candidate)
        return cls(
            row_ids=ids,
            candidate=tuple(candidate[i] for i in ids),
            champion=tuple(champion[i] for i in ids),
            clusters=None if clusters is None else tuple(clusters[i] for i in ids),
        )

    @property
    def differences(self) -> Array:
        """Candidate minus champion, (rows,)."""
        return np.asarray(self.candidate, dtype=np.float64) - np.asarray(self.champion, dtype=np.float64)

    @property
    def is_binary(self) -> bool:
        return bool(np.isin([self.candidate, self.champion], (0.0, 1.0)).all())


def check_rows(
    row_ids: Sequence[str], columns: Mapping[str, Sequence[float]], clusters: Sequence[Hashable] | None
) -> None:
    """Raise GateError for no rows, unequal lengths, a repeated row id, or a value that is not finite."""
    rows = len(row_ids)
    if rows == 0:
        raise GateError("no rows to compare; fix: give the evaluation of at least one row")
    for name, column in {**columns, "clusters": clusters}.items():
        if column is not None and len(column) != rows:
            raise GateError(f"{rows} row ids but {len(column)} values of {name}; fix: give one value per row")
    if len(set(row_ids)) != rows:
        twice = next(i for i in row_ids if list(row_ids).count(i) > 1)
        raise GateError(f"row {twice!r} occurs twice; fix: give each row once, and put what it shares into clusters")
    for name, column in columns.items():
        broken = np.flatnonzero(~np.isfinite(np.asarray(column, dtype=np.float64)))
        if len(broken):
            raise GateError(
                f"{len(broken)} of {rows} values of {name} are not finite, the first in row {row_ids[broken[0]]!r}; "
                "fix: find out why the evaluation gave no number there"
            )


def paired_interval(
    rows: PairedRows,
    *,
    confidence: float = 0.95,
    seed: int = 0,
    n_resamples: int = 4000,
    largest_difference: float | None = None,
) -> Interval:
    """Return the interval of the mean difference, candidate minus champion, in the metric's unit.

    Rows of 0 and 1 get Tango 1998 (see ``evaluation.intervals``), which has a width even where no row differs, widened to the
    half-sample interval (``half_samples``). At 0 that is the exact test of McNemar 1947, and it allows for clusters. Other rows
    get ``mean_interval`` of the differences; ``largest_difference``, the largest possible one on both sides, widens it to allow for
    rare losses and gains that these rows do not show (``bounded_mean``). Between rows of 0 and 1, each loss is as large as each gain,
    so the exact test allows for them.
    """
    if not rows.is_binary:
        interval = mean_interval(
            rows.differences, clusters=rows.clusters, confidence=confidence, seed=seed, n_resamples=n_resamples
        )
        if largest_difference is None:
            return interval
        sums = cluster_statistics(rows.differences, np.ones(len(rows.row_ids)), rows.clusters)
        low, minus_high = (
            mean_lower_bound(
                sign * sums[:, 0],
                sums[:, 1],
                lowest=-largest_difference,
                tail=(1 - confidence) / 2,
                seed=seed,
                n_draws=n_resamples,
            )
            for sign in (1, -1)
        )
        method = f"{interval.method}, for differences up to {largest_difference:g}"
        return Interval(interval.value, min(interval.low, low), max(interval.high, -minus_high), method)
    score = paired_binary_interval(rows.champion, rows.candidate, confidence)
    low, high, units = _half_samples(
        rows.differences, np.ones(len(rows.row_ids)), rows.clusters, confidence, seed, n_resamples
    )
    method = f"{score.method} and half-samples of {units}"
    return Interval(score.value, min(score.low, low), max(score.high, high), method)


def _half_samples(
    values: Array, weights: Array, clusters: Sequence[Hashable] | None, confidence: float, seed: int, n_subsets: int
) -> tuple[float, float, str]:
    """Return the ends of the half-sample interval of a weighted mean, and what its units are called."""
    sums = cluster_statistics(values * weights, weights, clusters)
    low, high = half_sample_interval(sums[:, 0], sums[:, 1], confidence=confidence, seed=seed, n_subsets=n_subsets)
    return low, high, "rows" if clusters is None else f"{len(sums)} clusters"


def mean_interval(
    values: Sequence[float] | Array,
    *,
    weights: Sequence[float] | Array | None = None,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    n_resamples: int = 4000,
) -> Interval:
    """Return the interval of the (weighted) mean of ``values`` (rows,), by clusters where there are some.

    It holds two intervals, the bootstrap-t and that of half-samples (``half_samples``). The bootstrap-t allows for skewed rows,
    and errs where few rows differ; half-samples are right there.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 12.5. Clusters are drawn whole (Davison and
    Hinkley 1997, "Bootstrap Methods and their Application", section 3.8), and each resample is studentised with its own
    clustered standard error (Miller 2024, arXiv 2411.00640; ``clustered_standard_error``). The percentile interval of the
    evaluation misses unevenly on the two sides when rows are skewed. A gate uses one side, so it needs this interval instead.
    ``weights`` (rows,), for example tokens, make the mean a ratio of sums.

    One row or cluster has no spread, nor have rows that all differ by the same amount. The interval is then unbounded, and
    ``method`` says so. A side on which too few rows differ is unbounded too.

    Raises:
        GateError: There are no rows, a value is not finite, or a weight is not positive.
    """
    x = np.asarray(values, dtype=np.float64)  # (rows,)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64)
    check_rows([str(i) for i in range(len(x))], {"values": x.tolist(), "weights": w.tolist()}, clusters)
    if (w <= 0).any():
        raise GateError("a weight is not positive; fix: leave out rows without tokens")
    value = float(x @ w / w.sum())
    statistics = cluster_statistics((x - value) * w, w, clusters)  # (clusters, 5), centred against rounding
    units = "rows" if clusters is None else f"{len(statistics)} clusters"
    if len(statistics) == 1:
        return Interval(value, -math.inf, math.inf, f"none: one {'row' if clusters is None else 'cluster'}, no spread")
    spread = float(standard_errors(statistics.sum(axis=0), len(statistics)))
    if spread <= 1e-13 * float(np.abs(x).max()):  # rounding
        return Interval(value, -math.inf, math.inf, f"none: all {units} differ alike, no spread")

    def studentised(sums: Array, _: Array) -> Array:
        return studentised_means(sums, 0.0, len(statistics))

    resamples = max(n_resamples, min(math.ceil(2 * _BEYOND / (1 - confidence)), _MOST_RESAMPLES))
    t = resampled_gains(statistics, statistics[:, :0], studentised, seed, resamples)
    low, high = bootstrap_t_bounds(value, spread, t[:, None], confidence)
    half_low, half_high, units = _half_samples(x, w, clusters, confidence, seed, n_resamples)
    method = f"bootstrap-t and half-samples of {units}, {resamples} each"
    return Interval(value, min(float(low[0]), half_low), max(float(high[0]), half_high), method)


def cluster_statistics(x: Array, w: Array, clusters: Sequence[Hashable] | None) -> Array:
    """Return the sums [x, w, xx, xw, ww] per cluster that a studentised ratio of sums needs, (clusters, 5)."""
    if clusters is not None:
        places = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
        index = np.array([places[name] for name in clusters], dtype=np.intp)
        x, w = _sums(x, index, len(places)), _sums(w, index, len(places))
    return np.stack([x, w, x * x, x * w, w * w], axis=-1)


def _sums(values: Array, index: NDArray[np.intp], size: int) -> Array:
    return np.asarray(np.bincount(index, values, size), dtype=np.float64)


def studentised_means(sums: Array, value: float | Array, units: int) -> Array:
    """Return (mean of a resample - ``value``) / standard error of that resample, from sums (..., 5) to (...).

    A resample without spread gives no information about the error of its mean, so it counts as infinitely far. Where its
    mean equals ``value`` the result is nan, and it counts on both sides. This can only make an interval longer.
    """
    distance = sums[..., 0] / sums[..., 1] - value
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(distance / standard_errors(sums, units))


def bootstrap_t_bounds(value: float | Array, spread: float | Array, t: Array, confidence: float) -> tuple[Array, Array]:
    """Return ``value`` minus the outer quantiles of ``t`` (resamples, samples), in standard errors; (samples,) each."""
    tail = (1 - confidence) / 2
    upper = np.quantile(np.where(np.isnan(t), np.inf, t), 1 - tail, axis=0, method="higher")
    lower = np.quantile(np.where(np.isnan(t), -np.inf, t), tail, axis=0, method="lower")
    return value - upper * spread, value - lower * spread


def clustered_standard_error(values: Sequence[float] | Array, clusters: Sequence[Hashable] | None = None) -> float:
    """Return the standard error of the mean of ``values`` (rows,) whose clusters are independent, in the unit of ``values``.

    Source: Miller 2024, "Adding Error Bars to Evals", arXiv 2411.00640: the square root of the products of deviations summed
    within clusters, divided by the number of rows; here times sqrt(G / (G - 1)) for G clusters, which without clusters is the
    usual s / sqrt(n). It is infinite for one cluster. Raises GateError as ``mean_interval`` does.
    """
    x = np.asarray(values, dtype=np.float64)
    check_rows([str(i) for i in range(len(x))], {"values": x.tolist()}, clusters)
    statistics = cluster_statistics(x, np.ones_like(x), clusters)
    return math.inf if len(statistics) == 1 else float(standard_errors(statistics.sum(axis=0), len(statistics)))


def standard_errors(sums: Array, units: int) -> Array:
    """Return the linearised standard error of sum(x) / sum(w) from [x, w, xx, xw, ww] sums (..., 5)."""
    x, w, xx, xw, ww = np.moveaxis(sums, -1, 0)
    mean = x / w
    squares = xx - 2 * mean * xw + mean * mean * ww
    rounding = 1e-14 * (xx + mean * mean * ww)  # what is left of a difference of equal sums
    return np.asarray(np.sqrt(np.where(squares > rounding, squares, 0.0) * (units / (units - 1))) / w)


def mcnemar_p(rows: PairedRows) -> float:
    """Return the exact two-sided p-value of "candidate and champion are right equally often", for rows of 0 and 1.

    Source: McNemar 1947, Psychometrika 12, 153-157: among the rows on which one side is right, the candidate's are
    Binomial(1/2). The p-value is 1 where no row differs. Raises GateError for other scores.
    """
    if not rows.is_binary:
        raise GateError("McNemar's test takes one 0 or 1 per row; fix: use paired_interval for other metrics")
    gained, lost = int((rows.differences > 0).sum()), int((rows.differences < 0).sum())
    return 1.0 if gained + lost == 0 else binomial_p(gained, gained + lost, 0.5, "two-sided")


def non_inferiority(harm: Interval, margin: float) -> Literal["shown", "refuted", "open"]:
    """Return whether a harm (positive = worse, in the unit of ``margin``) stays within ``margin``.

    It is shown when the whole interval is below the margin, refuted when all of it is above, else open (Piaggio et al.
    2012, CONSORT for non-inferiority trials, JAMA 308, 2594-2604, figure 1). Raises GateError for a margin that is not
    finite.
    """
    if not math.isfinite(margin):
        raise GateError(f"the margin is {margin}; fix: give a finite number")
    if harm.high < margin:
        return "shown"
    return "refuted" if harm.low > margin else "open"


def rows_still_needed(interval: Interval, rows: int, bound: float) -> int | None:
    """Estimate how many more rows would bring the whole interval to one side of ``bound``.

    The estimate takes the measured difference for the true one and lets the distance to the relevant end shrink with the root
    of the number of rows. It is None where that end is unbounded, the difference is on the bound, or more than a million rows
    would be needed.
    """
    distance = abs(interval.value - bound)
    reach = interval.value - interval.low if interval.value > bound else interval.high - interval.value
    if distance == 0 or not math.isfinite(reach):
        return None
    in_all = rows * (reach / distance) ** 2
    return None if in_all > FARTHEST_FORECAST_ROWS else max(1, math.ceil(in_all) - rows)
