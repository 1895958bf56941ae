"""Detect that answers of one version begin to fail more often than those of another, however long they were alike.

The test of ``failures`` is restarted with every batch of answers (``restarts``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlflow_finetune_plugin.gate.statistics.detectors.restarts import evidence_of, restarted
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered
from mlflow_finetune_plugin.gate.statistics.failures import log_factors

_NONE = Answered(0, 0)


@dataclass(frozen=True)
class ComparisonDetector:
    """The detector after some batches. It needs the newest counts only, so it can be stored between two of them.

    Args:
        batches: The number of batches so far.
        log_capitals: The log of the capital at each of the odds that are bet on, (24,); empty before the first batch.
        candidate: The answers so far of the version that may fail more often.
        champion: The other version's in the same batches.
    """

    batches: int = 0
    log_capitals: tuple[float, ...] = ()
    candidate: Answered = _NONE
    champion: Answered = _NONE

    @property
    def evidence(self) -> float:
        """The capital: the evidence that in some batches the candidate failed more often."""
        return evidence_of(self.log_capitals)

    def after(self, strata: Sequence[tuple[Answered, Answered]]) -> ComparisonDetector:
        """Return the detector with one more batch: the candidate's and the champion's answers of each router.

        Routers are compared each by itself, because load differs between them. The end of a batch must not depend on how
        many of its answers failed.
        """
        both = [(candidate, champion) for candidate, champion in strata if candidate.answers and champion.answers]
        if not both:
            return self
        factors = np.sum([log_factors(*pair) for pair in both], axis=0)
        capitals = restarted(self.log_capitals, self.batches + 1, factors)
        candidate, champion = (sum((pair[side] for pair in both), _NONE) for side in (0, 1))
        return ComparisonDetector(self.batches + 1, capitals, self.candidate + candidate, self.champion + champion)
