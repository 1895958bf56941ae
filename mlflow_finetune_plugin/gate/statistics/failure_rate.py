"""Test whether more answers fail than a bound allows, from two counts. The test stays valid after every answer.

It is the betting test of ``sequential`` with the bound in the place of 1/2: a gambler bets at odds that are fair if an
answer fails with probability ``at_most``, given those before it. If none fails with more, the capital ever reaches
1/alpha with probability at most alpha (Ville 1939), however often it is read. Source: Waudby-Smith and Ramdas 2024,
JRSS B 86, 1-27, section 4. On 0 and 1 the capital is a mixture of likelihood ratios of p > at_most against p = at_most,
with stake (p - at_most) / (1 - at_most) (Robbins 1970, Annals of Mathematical Statistics 41, 1397-1409), so the order
does not matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.evaluation.results import Interval
from mlflow_finetune_plugin.gate.statistics.sequential import VOTE_STAKES, Stakes, lower_end, mixed_log_capital

_CELLS = 64


@dataclass(frozen=True)
class Answered:
    """The number of answers that have ended, and of those that failed. Raises GateError for impossible counts."""

    answers: int
    failed: int

    def __post_init__(self) -> None:
        if not 0 <= self.failed <= self.answers:
            raise GateError(f"{self.failed} of {self.answers} answers failed; fix: give 0 <= failed <= answers")

    def __add__(self, other: Answered) -> Answered:
        return Answered(self.answers + other.answers, self.failed + other.failed)

    def __sub__(self, other: Answered) -> Answered:
        return Answered(self.answers - other.answers, self.failed - other.failed)

    def __str__(self) -> str:
        return f"{self.failed:,} of {self.answers:,}"


@dataclass(frozen=True)
class FailureRate:
    """The result of the test. ``evidence`` is the current capital, and ``boundary`` is 1/alpha.

    ``rate`` is valid at all times, at confidence 1 - 2 alpha. The lower end of ``rate`` is above ``at_most`` exactly
    when the capital has reached the boundary.
    """

    rate: Interval
    evidence: float
    boundary: float

    @property
    def is_above(self) -> bool:
        return self.evidence >= self.boundary


def failure_rate(counted: Answered, *, at_most: float, alpha: float) -> FailureRate:
    """Test, at error ``alpha``, whether answers fail with more than ``at_most``.

    The result is the current one. A caller that acts on the first crossing must remember it, because the capital can
    fall again.

    Raises:
        GateError: ``at_most`` or ``alpha`` cannot be tested.
    """
    if not 0 < at_most < 1 or not 0 < alpha < 0.5:
        raise GateError(f"at most {at_most} at an error of {alpha} cannot be tested; fix: an alpha below 0.5")
    limit, stakes = -math.log(alpha), rate_stakes(at_most)
    outcomes, counts = (
        np.array([0.0, 1.0]),
        np.array([counted.answers - counted.failed, counted.failed], dtype=np.float64),
    )
    method = f"betting, {1 - 2 * alpha:.4g} at all times"
    if counted.answers == 0:
        return FailureRate(Interval(0.0, 0.0, 1.0, method), 1.0, 1 / alpha)
    low = lower_end(outcomes, counts, stakes, limit)
    high = 1 - lower_end(outcomes, counts[::-1], VOTE_STAKES, limit)
    rate = Interval(counted.failed / counted.answers, low, high, method)
    return FailureRate(rate, e_above(counted, at_most), 1 / alpha)


def e_above(counted: Answered, at_most: float) -> float:
    """Return the capital of that test: the evidence that answers fail with more than ``at_most``.

    Raises:
        GateError: ``at_most`` is not between 0 and 1.
    """
    if not 0 < at_most < 1:
        raise GateError(f"a bound of {at_most} on the share of failures; fix: give one between 0 and 1, e.g. 0.05")
    outcomes, counts = (
        np.array([0.0, 1.0]),
        np.array([counted.answers - counted.failed, counted.failed], dtype=np.float64),
    )
    return math.exp(min(mixed_log_capital(outcomes, counts, rate_stakes(at_most), at_most), 700.0))


def rate_stakes(at_most: float) -> Stakes:
    """Return stakes whose best failure rates lie from 1.1 times ``at_most`` to nearly 1, evenly on a logarithmic scale."""
    rates = np.geomspace(1.1 * at_most, (1 + at_most) / 2 + 0.4 * (1 - at_most), _CELLS)
    return Stakes((rates - at_most) / (1 - at_most), np.full(_CELLS, -math.log(_CELLS)))
