"""The policy of a canary: how it widens. Imports nothing heavy, because commands read it before they judge."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mlflow_finetune_plugin.errors import GateError


@dataclass(frozen=True)
class CanaryPolicy:
    """How a canary widens.

    Args:
        steps: Shares of the requests in percent, rising.
        step_s: Seconds that each step takes at least.
        least_answers: Answers that the canary must give in each step.
        alpha: Chance of ever going back because of failures if the candidate fails no more often than the champion and
            than ``failures_at_most``. While both fail more often than that, the canary neither widens nor goes back.
        failures_at_most: Share of answers that may fail. The chance of ever widening a canary that fails more often is ``alpha``.
        patience: A step without ``least_answers`` holds after ``patience`` times ``step_s``.

    Raises:
        GateError: A value is out of range.
    """

    steps: tuple[float, ...]
    step_s: float = 600.0
    least_answers: int = 100
    alpha: float = 0.05
    failures_at_most: float = 0.05
    patience: int = 10

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in zip((0.0, *self.steps), self.steps, strict=False))
        if not self.steps or not rising or not self.steps[-1] <= 100:
            steps = ",".join(f"{step:g}" for step in self.steps) or "none"
            raise GateError(f"canary steps {steps}; fix: rising percentages above 0 and up to 100, e.g. 5,25,50")
        if not 0 < self.step_s < math.inf:
            raise GateError(f"a canary step of {self.step_s:g} s; fix: a duration above 0, e.g. 10m")
        if self.least_answers < 1:
            raise GateError(f"least answers {self.least_answers}; fix: a number from 1, or nothing was tried")
        if not 0 < self.failures_at_most < 0.5:
            raise GateError(f"failures at most {self.failures_at_most:g}; fix: a share between 0 and 0.5, e.g. 0.05")

    @property
    def boundary(self) -> float:
        """The evidence at which each of the two tests of failures decides. They share ``alpha``."""
        return 2 / self.alpha
