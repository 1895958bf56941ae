"""Detect that answers begin to fail with more than a bound allows, however many good answers came before.

The betting test of ``failure_rate`` is restarted with every batch of answers (``restarts``). At the 500th batch this costs as
much evidence as two answers that fail where 1 in 100 may.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.gate.statistics.detectors.restarts import evidence_of, restarted
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
        return evidence_of(self.log_capitals)

    def after(self, batch: Answered) -> FailureDetector:
        """Return the detector with one more batch. The end of a batch must not depend on how many of its answers failed."""
        if batch.answers == 0:
            return self
        for_failure, for_success = _log_ratios(self.at_most)
        gains = batch.failed * for_failure + (batch.answers - batch.failed) * for_success
        capitals = restarted(self.log_capitals, self.batches + 1, gains)
        recent = batch if self.evidence < 1 else self.recent + batch
        return FailureDetector(self.at_most, self.batches + 1, capitals, self.total + batch, recent)


@lru_cache(maxsize=16)
def _log_ratios(at_most: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the log likelihood ratios of a failure and of a success at each rate that is bet on, (64,) each."""
    rates = at_most + rate_stakes(at_most).shares * (1 - at_most)
    return np.log(rates / at_most), np.log((1 - rates) / (1 - at_most))
