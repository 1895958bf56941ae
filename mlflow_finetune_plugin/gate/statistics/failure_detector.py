"""Detect that answers begin to fail with more than a bound allows, however many good answers came before.

A test of all answers since the start dilutes: after 50,000 good answers thousands must fail before their share is above
the bound. So a new test (the betting test of ``failure_rate``) starts with each batch of answers, and the detector adds up
their capitals, as the e-detectors of Shin, Ramdas and Rinaldo 2023 (New England Journal of Statistics in Data Science)
do. Here test j starts with the share w_j of one unit of capital, and the shares of all tests add up to 1. While no answer
fails with more than the bound allows, the sum and the shares not yet used are a nonnegative supermartingale that starts at
1, so the chance that it ever reaches 1/alpha is at most alpha (Ville 1939). The price is log(1/w_j), about 9 at the 500th
batch: as much evidence as two answers that fail where 1 in 100 may.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered, rate_stakes

_NONE = Answered(0, 0)


@dataclass(frozen=True)
class FailureDetector:
    """The detector after some batches. It needs the newest counts only, so it can be stored between two of them.

    Args:
        at_most: The share of answers that may fail.
        batches: The number of batches so far.
        log_capitals: The log of the capital at each failure rate that is bet on, (64,); empty before the first batch.
        total: All answers so far.
        recent: The answers since the evidence was last below 1.

    Raises:
        GateError: ``at_most`` is not between 0 and 1.
    """

    at_most: float
    batches: int = 0
    log_capitals: tuple[float, ...] = ()
    total: Answered = _NONE
    recent: Answered = _NONE

    def __post_init__(self) -> None:
        if not 0 < self.at_most < 1:
            raise GateError(
                f"a bound of {self.at_most} on the share of failures; fix: give one between 0 and 1, e.g. 0.05"
            )

    @property
    def evidence(self) -> float:
        """The capital: the evidence that some answers failed with more than ``at_most`` allows."""
        if not self.log_capitals:
            return 0.0
        log_mean = np.logaddexp.reduce(np.array(self.log_capitals)) - math.log(len(self.log_capitals))
        return math.exp(min(float(log_mean), 700.0))

    def after(self, batch: Answered) -> FailureDetector:
        """Return the detector with one more batch. The end of a batch must not depend on how many of its answers failed."""
        if batch.answers == 0:
            return self
        for_failure, for_success = _log_ratios(self.at_most)
        gains = batch.failed * for_failure + (batch.answers - batch.failed) * for_success
        capitals = np.array(self.log_capitals) if self.log_capitals else np.full(len(gains), -np.inf)
        capitals = np.logaddexp(capitals, math.log(_share(self.batches + 1))) + gains
        recent = batch if self.evidence < 1 else self.recent + batch
        return FailureDetector(self.at_most, self.batches + 1, tuple(capitals.tolist()), self.total + batch, recent)


@lru_cache(maxsize=16)
def _log_ratios(at_most: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the log likelihood ratios of a failure and of a success at each rate that is bet on, (64,) each."""
    rates = at_most + rate_stakes(at_most).shares * (1 - at_most)
    return np.log(rates / at_most), np.log((1 - rates) / (1 - at_most))


def _share(number: int) -> float:
    """Return the share of the capital that test ``number`` starts with, about 1 / (n log(n)^2). All shares add up to 1."""
    return 1 / math.log(number + math.e - 1) - 1 / math.log(number + math.e)
