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


def discovery_alpha(alpha: float, number: int, discoveries: int) -> float:
    """Return the error that test ``number`` (1, 2, ...) may spend after so many discoveries: ``candidate_alpha`` times one more
    than they are.

    Of all candidates that are ever shown to be better, the expected share without a preference stays at most ``alpha`` if each
    test errs with at most its part, given the discoveries before it: LOND, Javanmard and Montanari 2018, Annals of Statistics
    46, 526-554. That holds where a test's data do not depend on what earlier tests showed, or depend positively, as gains on the
    same rows do (Zrnic, Ramdas and Jordan 2021, "Asynchronous online testing of multiple hypotheses", JMLR 22). For tests by
    betting alone it holds under any dependence (e-LOND, Xu and Ramdas 2024, AISTATS); planned looks are no e-values. Before the
    first discovery that share is the chance of any, under any dependence. A team whose candidates often are better keeps its power, where
    ``candidate_alpha`` alone would ask more of each.

    Raises:
        GateError: As ``candidate_alpha``, or ``discoveries`` is not between 0 and ``number`` - 1.
    """
    if not 0 <= discoveries < max(number, 1):
        raise GateError(f"{discoveries} discoveries before test {number}; fix: count earlier tests alone")
    return candidate_alpha(alpha, number) * (discoveries + 1)
