"""Test once, at a number of voters that was chosen before the first vote, whether the mean of their scores is above 1/2.

A test that is made once needs less evidence than one that may be made after every vote. With 20 voters of five votes each who
prefer the candidate with 65 %, the two together decide in 76 % of the cases, and betting alone, with as much alpha and voters
one after another, in 46 % (``benchmarks/results/gate_audit.md``).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.gate.statistics.half_samples import sign_flip_p

Array = NDArray[np.float64]

_NO_SPREAD = 1e-24


def planned_look_p(
    deviations: Sequence[float] | Array, voters: Sequence[Hashable], prompts: Sequence[Hashable] | None = None
) -> tuple[float, float]:
    """Return the one-sided p-values of "the mean is at most 1/2" and of "the mean is at least 1/2".

    A Student t-test whose standard error allows for votes that share a voter or a prompt: Cameron, Gelbach and Miller 2011,
    "Robust inference with multiway clustering", Journal of Business and Economic Statistics 29, 238-249, the sum of both
    clustered variances less that of their intersections, and never less than either. The degrees of freedom are those of the
    smaller number of clusters. Without ``prompts`` it is the usual t-test of the voters' scores. Where all voters are as far from
    1/2, as with one vote each, the exact sign-flip test has to agree.

    Args:
        deviations: (votes,) Each vote's part of the voters' mean score minus 1/2, so that they sum to it.
        voters: (votes,) Who cast each vote.
        prompts: (votes,) What each vote was on; None: no two voters share a prompt.

    Raises:
        GateError: There are fewer than two voters.
    """
    x = np.asarray(deviations, dtype=np.float64)
    index = _index(voters)
    votes_of_voter = np.bincount(index)
    if len(votes_of_voter) < 2:
        raise GateError(f"{len(votes_of_voter)} voters have no spread; fix: plan a look at two or more")
    # those of a voter sum to that voter's deviation from the mean
    residuals = x - x.sum() / len(votes_of_voter) / votes_of_voter[index]
    variance, clusters = _variance(residuals, index), len(votes_of_voter)
    if prompts is not None:
        by_prompt = _index(prompts)
        if by_prompt.max() == 0:
            return 1.0, 1.0  # one prompt says nothing about others
        both = _index(list(zip(voters, prompts, strict=True)))
        parts = [variance, _variance(residuals, by_prompt)]
        variance, clusters = max(*parts, sum(parts) - _variance(residuals, both)), min(by_prompt.max() + 1, clusters)
    deviations_of_voters = np.asarray(np.bincount(index, x), dtype=np.float64)
    sizes = np.abs(deviations_of_voters[deviations_of_voters != 0])
    better = worse = 0.0
    if variance <= _NO_SPREAD or (len(sizes) and sizes.max() - sizes.min() <= 1e-9 * sizes.max()):
        better, worse = sign_flip_p(deviations_of_voters, seed=0)
    if variance > _NO_SPREAD:
        statistic = float(x.sum()) / math.sqrt(variance)
        better, worse = (
            max(p, float(stdtr(clusters - 1, side))) for p, side in ((better, -statistic), (worse, statistic))
        )
    return better, worse


def _index(names: Sequence[Hashable]) -> NDArray[np.intp]:
    """Return the number of each name, from 0 in the order of first appearance."""
    places = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([places[name] for name in names], dtype=np.intp)


def _variance(residuals: Array, index: NDArray[np.intp]) -> float:
    """Return the variance of the sum of the residuals, whose sums over clusters are independent."""
    sums = np.bincount(index, residuals)
    return float(sums @ sums) * len(sums) / (len(sums) - 1) if len(sums) > 1 else 0.0
