"""Intervals and the exact test of a share of successes."""

from __future__ import annotations

from typing import Literal

from scipy.stats import binomtest

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.evaluation.results import Interval


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Return the score interval of a share, within [0, 1] (Wilson 1927, JASA 22, 209-212; no continuity correction).

    It is valid for one look at a number of trials that was fixed beforehand. For votes that are read repeatedly, use
    ``sequential``. Raises GateError for no trials or an impossible count.
    """
    return _interval(successes, trials, confidence, "wilson", "Wilson 1927")


def exact_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Return the exact interval of a share; its coverage is never below its confidence (Clopper and Pearson 1934, Biometrika
    26, 404-413). Raises GateError for no trials or an impossible count.
    """
    return _interval(successes, trials, confidence, "exact", "Clopper-Pearson 1934")


def binomial_p(
    successes: int,
    trials: int,
    share: float = 0.5,
    alternative: Literal["two-sided", "less", "greater"] = "two-sided",
) -> float:
    """Return the exact binomial p-value of ``share``. Two-sided, it sums every count at most as likely as the observed one.

    Source: Fisher 1935, "The Design of Experiments", chapter 2. Raises GateError for no trials, an impossible count or share.
    """
    _check(successes, trials)
    if not 0 <= share <= 1:
        raise GateError(f"a share of {share} cannot be tested; fix: give one from 0 to 1")
    return float(binomtest(successes, trials, share, alternative).pvalue)


def _interval(
    successes: int, trials: int, confidence: float, scipy_name: Literal["wilson", "exact"], method: str
) -> Interval:
    _check(successes, trials)
    bounds = binomtest(successes, trials).proportion_ci(confidence, scipy_name)
    return Interval(successes / trials, float(bounds.low), float(bounds.high), method)


def _check(successes: int, trials: int) -> None:
    if trials < 1 or not 0 <= successes <= trials:
        raise GateError(f"{successes} of {trials} is not a share; fix: give 0 <= successes <= trials and some trials")
