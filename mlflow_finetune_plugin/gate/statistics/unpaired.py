"""Compare one model on two sets of rows: the difference of the means, with an interval."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from mlflow_finetune_plugin.evaluation.results import Interval
from mlflow_finetune_plugin.gate.statistics.paired import check_rows, cluster_statistics, standard_errors
from mlflow_finetune_plugin.gate.statistics.proportions import wilson_interval

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """The values (rows,) of one set. Their mean is weighted, for example by tokens.

    Raises:
        GateError: There are no rows, or a value is not a number.
    """

    values: tuple[float, ...]
    weights: tuple[float, ...] | None = None
    clusters: tuple[Hashable, ...] | None = None

    def __post_init__(self) -> None:
        columns = {"values": self.values} | ({} if self.weights is None else {"weights": self.weights})
        check_rows([str(i) for i in range(len(self.values))], columns, self.clusters)

    @property
    def is_binary(self) -> bool:
        """Whether the rows are independent, 0 or 1, and of equal weight."""
        return self.weights is None and self.clusters is None and bool(np.isin(self.values, (0.0, 1.0)).all())


def difference_interval(first: Sample, second: Sample, *, confidence: float = 0.95) -> Interval:
    """Return the interval of the mean of ``first`` minus the mean of ``second``, for independent sets of rows.

    Rows of 0 and 1: Newcombe 1998, "Interval estimation for the difference between independent proportions", Statistics in
    Medicine 17, 873-890, method 10. Other rows: Welch 1947, Biometrika 34, 28-35, with Satterthwaite's degrees of freedom;
    each standard error is that of a ratio of sums over clusters (``paired.standard_errors``). A set of one row or cluster, or
    of equal rows, has no spread. The interval is then unbounded, and ``method`` says so.
    """
    if first.is_binary and second.is_binary:
        return _newcombe(first.values, second.values, confidence)
    (mean, error, units), (other, other_error, other_units) = _mean(first), _mean(second)
    value = mean - other
    if error is None or other_error is None:
        which = "first" if error is None else "second"
        return Interval(value, -math.inf, math.inf, f"none: the {which} rows have no spread")
    squares = error**2 + other_error**2
    freedom = squares**2 / (error**4 / (units - 1) + other_error**4 / (other_units - 1))
    reach = float(stdtrit(freedom, (1 + confidence) / 2)) * math.sqrt(squares)
    return Interval(value, value - reach, value + reach, f"Welch 1947, confidence {confidence:.4g}")


def _newcombe(first: tuple[float, ...], second: tuple[float, ...], confidence: float) -> Interval:
    first_rate, second_rate = (wilson_interval(int(sum(values)), len(values), confidence) for values in (first, second))
    value = first_rate.value - second_rate.value
    low = value - math.hypot(first_rate.value - first_rate.low, second_rate.high - second_rate.value)
    high = value + math.hypot(first_rate.high - first_rate.value, second_rate.value - second_rate.low)
    return Interval(value, low, high, f"Newcombe 1998, confidence {confidence:.4g}")


def _mean(sample: Sample) -> tuple[float, float | None, int]:
    """Return (mean, its standard error, rows or clusters). The error is None where there is no spread."""
    x = np.asarray(sample.values, dtype=np.float64)
    w = np.ones_like(x) if sample.weights is None else np.asarray(sample.weights, dtype=np.float64)
    mean = float(x @ w / w.sum())
    statistics = cluster_statistics((x - mean) * w, w, sample.clusters)  # centred against rounding
    if len(statistics) == 1:
        return mean, None, 1
    error = float(standard_errors(statistics.sum(axis=0), len(statistics)))
    return mean, error if error > 1e-13 * float(np.abs(x).max()) else None, len(statistics)
