"""A lower bound of a mean that allows for rare low values which no row happens to show."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_DRAWS_PER_CHUNK = 2_000_000
_MOST_DRAWS = 40_000


def mean_lower_bound(
    sums: Array, weights: Array, *, lowest: float, tail: float, seed: int, n_draws: int = 4000
) -> float:
    """Return a lower bound of sum(``sums``) / sum(``weights``), where clusters are independent and values have a lowest one.

    One more cluster is added, as large as the largest, all of whose values are ``lowest``. The bound is the ``tail`` quantile of
    the mean with weights that are uniform on the simplex. If n rows gained 0.02 each, the added row has a weight of 1 - tail ** (1/n)
    at that quantile: a loss on so many of all rows would probably not be among n of them.

    Source: Gaffke 2005, "Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative variable",
    Mathematical Methods of Statistics 14, 451-467; Learned-Miller and Thomas 2019, arXiv 1905.06208. That the bound errs in at most
    ``tail`` of the cases is a conjecture for more than a few rows; no exception is known. ``benchmarks/gate_audit.py`` simulates it.

    Args:
        sums: (clusters,) The sum of the values of each cluster.
        weights: (clusters,) Its number of rows, or sum of weights, above 0.
        lowest: The lowest possible value of a row.
        tail: The chance that the mean is below the bound.
        seed: Of the random weights.
        n_draws: How many times weights are drawn; more are drawn where ``tail`` needs them. A ``tail`` that the most draws cannot
            show gives ``lowest``.
    """
    draws = min(max(n_draws, math.ceil(50 / tail)), _MOST_DRAWS)
    if tail * draws < 1:
        return lowest
    largest = weights.max()
    all_sums, all_weights = np.append(sums, largest * lowest), np.append(weights, largest)
    rng = np.random.default_rng(seed)
    per_chunk = max(1, _DRAWS_PER_CHUNK // len(all_sums))
    means = []
    for start in range(0, draws, per_chunk):
        # Normalising exponential variables would make them uniform on the simplex. The ratio does not need it.
        drawn = rng.standard_exponential((min(per_chunk, draws - start), len(all_sums)))
        means.append((drawn @ all_sums) / (drawn @ all_weights))
    return float(np.quantile(np.concatenate(means), tail, method="lower"))
