"""How a canary widens, as it was asked for. Nothing heavy is imported: commands read it before they judge."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mlflow_finetune_plugin.errors import GateError


@dataclass(frozen=True)
class CanaryPolicy:
    """How a canary widens. ``steps``: its shares of the requests in percent; ``step_s``: seconds that each takes at least.

    ``least_answers`` in each step, for which ``patience`` times ``step_s`` are waited. ``alpha``: chance of ever going
    back because of failures though the candidate fails no more often than the champion and than ``failures_at_most``;
    while both fail more often than that, it neither widens nor goes back.
    ``slow_looks``: new summaries in a row that must be too slow. Raises GateError for what is no policy.
    """

    steps: tuple[float, ...]
    step_s: float = 600.0
    least_answers: int = 100
    alpha: float = 0.05
    failures_at_most: float = 0.05
    slow_looks: int = 3
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

    @property
    def boundary(self) -> float:
        """Of each of the two tests of failures, which share ``alpha``."""
        return 2 / self.alpha
