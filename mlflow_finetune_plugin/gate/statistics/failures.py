"""Test whether a candidate fails more often than the champion. The test stays valid after every batch of answers.

Answers come in batches: those that a router reported between two checks, with answers of both sides. If the candidate
fails no more often than the champion, its number of failures in a batch is at most hypergeometric, given both sizes and
the number of failures, whatever the failure rate was in that batch (Fisher 1935, JRSS 98, 39-82; as a test over strata
Cox 1970, "Analysis of Binary Data", 4.3). So an outage that affects both sides equally is not evidence; against an
assumed rate it would be. Where x of the failures are the candidate's, a gambler who bets on odds w > 1 gains the factor
w^x / E[w^X]: it is 1 in expectation where the odds are even, and less where the candidate's are lower, because the law of
x has a monotone likelihood ratio in the odds. The product over batches, mixed over a grid of odds (Robbins 1970, Annals of
Mathematical Statistics 41, 1397-1409), reaches 1/alpha with a probability of at most alpha, however often it is read
(Ville 1939, "Etude critique de la notion de collectif", chapter V). Turner, Ly and Gruenwald 2024 ("Generic E-variables
for exact sequential k-sample tests that allow for optional stopping", JSPI 230, 106116) give an unconditional test, which
first has to learn the rates. It needs more answers in all six cases of ``benchmarks/gate_canary.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered

Array = NDArray[np.float64]

_LOG_ODDS: Array = np.linspace(math.log(1.25), math.log(100), 24)
"""The odds that are bet on: the candidate's odds of failing are 1.25 to 100 times the champion's."""


@dataclass(frozen=True)
class FailureTest:
    """The log of the capital at each of the odds that are bet on, (24,). Each capital starts at 1."""

    log_capitals: Array = field(default_factory=lambda: np.zeros_like(_LOG_ODDS), repr=False)

    @property
    def e_worse(self) -> float:
        """The evidence that the candidate fails more often. Its expectation is at most 1 where it does not."""
        return float(np.exp(min(np.logaddexp.reduce(self.log_capitals) - math.log(len(self.log_capitals)), 700.0)))

    def after(self, candidate: Answered, champion: Answered) -> FailureTest:
        """Return the test with one more batch. A batch without failures, or without answers of a side, changes nothing.

        The end of a batch must not depend on how many of its answers failed.
        """
        return FailureTest(self.log_capitals + log_factors(candidate, champion))


def log_factors(candidate: Answered, champion: Answered) -> Array:
    """Return the log of the factor by which a batch changes the capital at each of the odds, (24,)."""
    failed = candidate.failed + champion.failed
    if not (candidate.answers and champion.answers and failed):
        return np.zeros_like(_LOG_ODDS)
    answers = candidate.answers + champion.answers
    share = np.arange(max(0, failed - champion.answers), min(failed, candidate.answers) + 1, dtype=np.int64)
    ways = _log_choose(candidate.answers, share) + _log_choose(champion.answers, failed - share)  # (shares,)
    log_chances = ways - _log_choose(answers, failed)
    expected = np.logaddexp.reduce(log_chances + _LOG_ODDS[:, None] * share, axis=1)  # (24,)
    return np.asarray(candidate.failed * _LOG_ODDS - expected)


def _log_choose(n: int, k: NDArray[np.int64] | int) -> Array:
    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))
