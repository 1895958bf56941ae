"""Restart a test with every batch, so that what came before a change does not hide it.

A test of all answers since the start dilutes: after 50,000 good answers thousands must be bad before their share shows. So a
new test starts with each batch of answers, and their capitals are added up, as the e-detectors of Shin, Ramdas and Rinaldo
2023 (New England Journal of Statistics in Data Science) do. Here test j starts with the share w_j of one unit of capital,
and the shares of all tests add up to 1. While the hypothesis is true, the sum and the shares not yet used are a nonnegative
supermartingale that starts at 1, so the chance that it ever reaches 1/alpha is at most alpha (Ville 1939). The price is
log(1/w_j), about 9 at the 500th batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def restarted(log_capitals: Sequence[float], batch: int, log_factors: NDArray[np.float64]) -> tuple[float, ...]:
    """Return the log of the capital of all tests together at each bet, after one more batch.

    Args:
        log_capitals: The same before the batch; empty before the first.
        batch: The number of the batch, from 1.
        log_factors: The log of the factor by which the batch changes the capital at each bet.
    """
    before = np.array(log_capitals) if log_capitals else np.full(len(log_factors), -np.inf)
    return tuple((np.logaddexp(before, math.log(share(batch))) + log_factors).tolist())


def evidence_of(log_capitals: Sequence[float]) -> float:
    """Return the capital over all bets; 0 before the first batch."""
    if not log_capitals:
        return 0.0
    log_mean = np.logaddexp.reduce(np.array(log_capitals)) - math.log(len(log_capitals))
    return math.exp(min(float(log_mean), 700.0))


def share(number: int) -> float:
    """Return the share of the capital that test ``number`` starts with, about 1 / (n log(n)^2). All shares add up to 1."""
    return 1 / math.log(number + math.e - 1) - 1 / math.log(number + math.e)
