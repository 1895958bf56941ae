"""A test that may be looked at after every score: is the mean of scores in [0, 1] above 1/2, or below?

Two gamblers start with a capital of 1 and bet at fair odds on each score, one on "above", one on "below". Where the
mean is 1/2 or less, the first cannot expect to win, and ever owning 1/alpha has a probability of at most alpha (Ville
1939, "Etude critique de la notion de collectif", chapter V), however often one looks.

Source: Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting", JRSS B 86, 1-27,
section 4. The stake is mixed over a Beta density instead of being predicted from the scores so far (Robbins 1970,
Annals of Mathematical Statistics 41, 1397-1409; for bounded scores Orabona and Jun 2024, IEEE Transactions on
Information Theory 70, 436-455): the capital then does not depend on the scores' order. On scores of 0 and 1 it is the
Beta mixture of likelihood ratios of p > 1/2 against p = 1/2, with p = (1 + stake) / 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betainc

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.evaluation.results import Interval

Array = NDArray[np.float64]

FARTHEST_FORECAST = 10_000
"""Scores in all; beyond that a forecast is not worth the name."""

_CELLS = 64


@dataclass(frozen=True)
class Stakes:
    """Shares of the capital put on a score, in (0, 1), and the log of how the first capital is spread over them; (64,)."""

    shares: Array
    log_weights: Array


def beta_stakes(a: float, b: float) -> Stakes:
    """Beta(a, b), cut into 64 equal cells; a mixture of finitely many stakes is as valid as the density's."""
    edges = np.linspace(0, 1, _CELLS + 1)
    return Stakes((edges[1:] + edges[:-1]) / 2, np.log(np.diff(betainc(a, b, edges))))


VOTE_STAKES = beta_stakes(2, 2)
"""For single votes, where the best stake is 2p - 1: .2 to .6 for p of .6 to .8."""

VOTER_STAKES = beta_stakes(2, 1)
"""For means of several votes: they vary less, so higher stakes are best (1 or more at a mean of .65 of five votes)."""


@dataclass(frozen=True)
class SequentialTest:
    """What the scores say by now.

    ``e_better`` and ``e_worse`` (scores + 1,) are the two capitals before the first and after every score;
    ``boundary`` is 1/alpha. ``better_at`` and ``worse_at`` are the number of scores at which they first stood at or
    above it, not before ``minimum``; None: not yet. ``mean`` has a confidence sequence of confidence 1 - 2 alpha, valid
    at all times at once, whose lower end is above 1/2 exactly where ``e_better`` is above the boundary.
    """

    mean: Interval
    e_better: Array
    e_worse: Array
    boundary: float
    better_at: int | None
    worse_at: int | None

    @property
    def e_two_sided(self) -> Array:
        """The mean of both, an e-process of "the mean is 1/2" against both sides (section 4, hedged capital)."""
        return (self.e_better + self.e_worse) / 2


def betting_test(scores: Sequence[float] | Array, stakes: Stakes, *, alpha: float, minimum: int = 1) -> SequentialTest:
    """Tests the mean of ``scores`` (n,) in [0, 1] against 1/2 from both sides, each at error ``alpha``.

    The hypothesis that ``e_better`` tests: each score has a mean of at most 1/2 given those before it. No score at all
    is a test that knows nothing. Raises GateError for scores outside [0, 1] or not finite, an alpha outside (0, 1/2)
    and a minimum below 1.
    """
    x, limit = _scores(scores), _limit(alpha)
    if minimum < 1:
        raise GateError(f"a minimum of {minimum} scores; fix: give 1 or more")
    better, worse = _log_capitals(x, stakes), _log_capitals(1 - x, stakes)
    return SequentialTest(
        mean=confidence_sequence(x, stakes, alpha=alpha),
        e_better=_capped_exp(better),
        e_worse=_capped_exp(worse),
        boundary=1 / alpha,
        better_at=_first_at(better, limit, minimum),
        worse_at=_first_at(worse, limit, minimum),
    )


def confidence_sequence(scores: Sequence[float] | Array, stakes: Stakes, *, alpha: float) -> Interval:
    """The means in [0, 1] against which neither gambler owns 1/alpha by now: confidence 1 - 2 alpha, valid at all
    times.

    The capital against a mean m is the product of 1 + stake (x / m - 1); it falls in m, so each end is a root (section
    4, Theorem 3, with one-sided capitals). No score: [0, 1] around 1/2. Raises as ``betting_test``.
    """
    x, limit = _scores(scores), _limit(alpha)
    method = f"betting, {1 - 2 * alpha:.4g} at all times"
    if len(x) == 0:
        return Interval(0.5, 0.0, 1.0, method)
    values, repeats = np.unique(x, return_counts=True)
    counts = repeats.astype(np.float64)
    low, high = lower_end(values, counts, stakes, limit), 1 - lower_end(1 - values, counts, stakes, limit)
    return Interval(float(x.mean()), low, high, method)


def scores_still_needed(
    scores: Sequence[float] | Array, stakes: Stakes, *, alpha: float, minimum: int = 1
) -> int | None:
    """How many more scores would likely bring a capital to 1/alpha, if they fall as those so far. An estimate.

    Lets each stake's capital grow on at its mean log growth so far, without luck; few scores make a rough estimate. In
    ``benchmarks/gate_errors.py`` it is enough in about three of four cases. 0 where the boundary is reached now, None
    where it would take more than ``FARTHEST_FORECAST`` scores in all, or there are none to go by. Raises as
    ``betting_test``.
    """
    x, limit = _scores(scores), _limit(alpha)
    if len(x) == 0:
        return None
    in_all = min(_scores_in_all(growth, len(x), stakes, limit) for growth in _growths(x, stakes))
    return None if in_all > FARTHEST_FORECAST else max(in_all, minimum) - len(x)


def log_factors(scores: Array, stakes: Stakes, mean: float = 0.5) -> Array:
    """Log of what each score (...,) does to the capital at each stake when betting on "above ``mean``", (..., 64)."""
    return np.asarray(np.log1p(stakes.shares * (scores[..., None] / mean - 1)))


def mixed_log_capital(values: Array, counts: Array, stakes: Stakes, mean: float) -> float:
    """Log of the capital that bet on "above ``mean``", after ``counts`` scores of each of ``values``, (k,) both."""
    return float(_mixed(counts @ log_factors(values, stakes, mean), stakes))


def lower_end(values: Array, counts: Array, stakes: Stakes, limit: float) -> float:
    """The mean at which the log of that capital is ``limit``; it falls in the mean."""

    def excess(mean: float) -> float:
        return mixed_log_capital(values, counts, stakes, mean) - limit

    least = 1e-9
    return 0.0 if excess(least) < 0 else float(brentq(excess, least, 1.0, xtol=1e-9))


def _scores(scores: Sequence[float] | Array) -> Array:
    x = np.asarray(scores, dtype=np.float64).reshape(-1)
    if not (np.isfinite(x) & (x >= 0) & (x <= 1)).all():
        raise GateError("a score is not a number from 0 to 1; fix: give 1 for a win, 0.5 for a tie, 0 for a loss")
    return x


def _limit(alpha: float) -> float:
    """Log of the boundary 1/alpha."""
    if not 0 < alpha < 0.5:
        raise GateError(f"an alpha of {alpha} is no error rate of a test; fix: give one between 0 and 0.5, e.g. 0.05")
    return -math.log(alpha)


def _log_capitals(x: Array, stakes: Stakes) -> Array:
    """Log capital before the first and after every score, (n + 1,)."""
    values, index = np.unique(x, return_inverse=True)
    gains = log_factors(values, stakes)[index].cumsum(axis=0)  # (n, 64)
    return np.concatenate([[0.0], _mixed(gains, stakes)])


def _mixed(log_capitals: Array, stakes: Stakes) -> Array:
    """Log of the mixture of the capitals at each stake (..., 64)."""
    weighed = log_capitals + stakes.log_weights
    peaks = weighed.max(axis=-1)
    return np.asarray(peaks + np.log(np.exp(weighed - peaks[..., None]).sum(axis=-1)))


def _capped_exp(log_capital: Array) -> Array:
    return np.asarray(np.exp(np.minimum(log_capital, 700.0)))  # near the largest float64, for JSON and plots


def _first_at(log_capital: Array, limit: float, minimum: int) -> int | None:
    reached = np.flatnonzero(log_capital[minimum:] >= limit)
    return int(reached[0]) + minimum if len(reached) else None


def _growths(x: Array, stakes: Stakes) -> list[Array]:
    """Mean log growth per score at each stake, betting on above and on below, (64,) each."""
    return [log_factors(side, stakes).mean(axis=0) for side in (x, 1 - x)]


def _scores_in_all(growth: Array, scores: int, stakes: Stakes, limit: float) -> int:
    """The least n >= ``seen`` at which the mixture stands at ``limit``; it is convex in n, so it passes it once."""

    def stands(n: int) -> bool:
        return bool(_mixed(n * growth, stakes) >= limit)

    return _least(stands, scores, FARTHEST_FORECAST + 1)


def _least(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The least n in [low, high] at which ``holds``, which stays true once it is; ``high`` where it never does."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
