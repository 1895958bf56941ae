"""Widen the interval of a mean to allow for large values that no row happens to show, where the rows are skewed.

Without a largest possible value no interval is right for every law: a value that is rarer than one in the number of rows can carry
any part of the mean (Bahadur and Savage 1956, Annals of Mathematical Statistics 27, 1115-1122). Skewed rows announce such values:
the largest lie farther from the median than the smallest. So one more row is added whose distance from the mean grows with that
asymmetry, and the bound is Gaffke's (``bounded_mean``). Symmetric rows keep their interval.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlflow_finetune_plugin.evaluation.results import Interval
from mlflow_finetune_plugin.gate.statistics.bounded_mean import mean_lower_bound

Array = NDArray[np.float64]

_REACH, _REACH_OF_FEW = 3.0, 30.0
"""The added row lies ``_REACH`` + ``_REACH_OF_FEW`` / rows times the asymmetry above the mean.

Of the rules simulated it is the one with the most power that keeps the error of lognormal rows with a sigma of 1.2 at 2.5 % with
20 to 200 rows (``benchmarks/forgetting_bounds.py``). Few rows need a larger distance: their largest value shows less of the tail.
"""


def widen_for_skew(interval: Interval, sums: Array, weights: Array, *, confidence: float, seed: int) -> Interval:
    """Return ``interval`` with ends that also reach the bounds of a mean with one more value, far out on the side of the skew.

    Args:
        interval: Of sum(``sums``) / sum(``weights``).
        sums: (clusters,) The sum of the values of each cluster.
        weights: (clusters,) Its sum of weights, above 0.
        confidence: Of ``interval``.
        seed: Of the random weights.
    """
    tail = (1 - confidence) / 2
    low, minus_high = (
        mean_lower_bound(
            sign * sums,
            weights,
            lowest=-unseen_value(-sign * sums / weights, -sign * interval.value),
            tail=tail,
            seed=seed,
        )
        for sign in (1, -1)
    )
    ends = min(interval.low, low), max(interval.high, -minus_high)
    return Interval(interval.value, *ends, f"{interval.method}, allowing for skew")


def unseen_value(values: Array, mean: float) -> float:
    """Return the value that the added row has: ``mean`` where ``values`` (clusters,) are symmetric or skewed downwards."""
    ordered, middle = np.sort(values), float(np.median(values))
    tenth = max(1, min(max(len(values) // 10, 2), len(values) // 2))
    above, below = float(ordered[-tenth:].mean()) - middle, middle - float(ordered[:tenth].mean())
    return mean + (_REACH + _REACH_OF_FEW / len(values)) * max(above - below, 0.0)
