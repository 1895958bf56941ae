"""One error rate shared by all candidates that ever come before the gate."""

from __future__ import annotations

import math

from mlflow_finetune_plugin.errors import GateError


def candidate_alpha(alpha: float, number: int) -> float:
    """Return the part of ``alpha`` that candidate ``number`` (1, 2, ...) may spend: alpha * 6 / (pi^2 number^2).

    The parts of all future candidates sum to ``alpha`` (Euler's series), so by the union bound the chance that any
    candidate without a preference is ever promoted stays at most ``alpha``, however many are tried and however they
    depend on each other. Spending by a convergent series: Foster and Stine 2008, "Alpha-investing", JRSS B 70, 429-444;
    Ramdas et al. 2017, "Online control of the false discovery rate with decaying memory", NeurIPS.

    Raises:
        GateError: ``alpha`` is outside (0, 1), or ``number`` is below 1.
    """
    if not 0 < alpha < 1:
        raise GateError(f"an alpha of {alpha} cannot be shared; fix: give one between 0 and 1, e.g. 0.05")
    if number < 1:
        raise GateError(f"candidate number {number}; fix: count candidates from 1")
    return alpha * 6 / (math.pi * number) ** 2
