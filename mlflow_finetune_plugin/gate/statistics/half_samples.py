"""The sign-flip test of a mean and the interval that it gives, exact where clusters are symmetric around it, however few differ."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_SIGNS_PER_CHUNK = 2_000_000
_MOST_SUBSETS = 200_000


def half_sample_interval(
    sums: Array, weights: Array, *, confidence: float, seed: int, n_subsets: int = 4000
) -> tuple[float, float]:
    """Return the interval of sum(``sums``) / sum(``weights``), where clusters are independent.

    A mean m is inside if flipping the signs of random clusters' deviations from m gives a sum as large as the measured one
    often enough. That holds exactly where m is above the mean of enough random subsets of the clusters, so the ends are
    quantiles of subset means (Hartigan 1969, "Using subsample values as typical values", JASA 64, 1303-1317). If only two
    clusters differ, a quarter of the subsets have neither of them, so 0 is inside, where a bootstrap leaves it out.

    All subsets are taken where there are few, else ``n_subsets`` at random, and more where ``confidence`` needs them. The
    empty subset is counted at both infinities, so the interval is unbounded where the clusters are too few.

    Args:
        sums: (clusters,) The sum of the values of each cluster.
        weights: (clusters,) Its number of rows, or sum of weights, above 0.
        confidence: Of both sides together.
        seed: Of the random subsets.
        n_subsets: How many of them.

    Returns:
        The ends of the interval, which belong to it: a mean that equals an end is not excluded.
    """
    tail = (1 - confidence) / 2
    means = np.sort(_subset_means(sums, weights, min(max(n_subsets, math.ceil(50 / tail)), _MOST_SUBSETS), seed))
    outside = math.floor(tail * (len(means) + 1))  # of the sets of signs, which are one more, with the measured one
    if outside == 0:
        return -math.inf, math.inf
    return float(means[outside - 1]), float(means[-outside])


def sign_flip_p(sums: Array, *, seed: int, n_subsets: int = 20_000) -> tuple[float, float]:
    """Return the one-sided p-values of "the mean is at most 0" and of "the mean is at least 0".

    They are the shares of subsets whose mean is on the other side, which are the sets of signs that give a sum as large. With
    clusters of equal size it is the sign test.

    Args:
        sums: (clusters,) The sum of the values of each cluster.
        seed: Of the random subsets, where there are more than ``n_subsets``.
        n_subsets: How many of them.
    """
    means = _subset_means(sums, np.ones(len(sums)), n_subsets, seed)
    rounding = 1e-12 * float(np.abs(sums).max(initial=0.0))
    at_most, at_least = (means <= rounding).sum(), (means >= -rounding).sum()
    return float(1 + at_most) / (len(means) + 1), float(1 + at_least) / (len(means) + 1)


def _subset_means(sums: Array, weights: Array, wanted: int, seed: int) -> Array:
    if 2 ** len(sums) - 1 <= wanted:
        return _all_means(sums, weights)
    return _random_means(sums, weights, wanted, seed)


def _all_means(sums: Array, weights: Array) -> Array:
    subsets = np.arange(1, 2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1
    return np.asarray((subsets @ sums) / (subsets @ weights))


def _random_means(sums: Array, weights: Array, subsets: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    per_chunk = max(1, _SIGNS_PER_CHUNK // len(sums))
    means = []
    for start in range(0, subsets, per_chunk):
        bits = rng.integers(256, size=(min(per_chunk, subsets - start), -(-len(sums) // 8)), dtype=np.uint8)
        chosen = np.unpackbits(bits, axis=1, count=len(sums)).astype(np.float64)
        totals = chosen @ weights
        with np.errstate(divide="ignore", invalid="ignore"):
            means.append(np.where(totals > 0, (chosen @ sums) / totals, math.inf))  # empty: one of 2 ** clusters
    return np.concatenate(means)
