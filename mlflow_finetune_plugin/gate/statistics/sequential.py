"""Test whether the mean of scores in [0, 1] is above or below 1/2. The test stays valid after every score.

Two gamblers start with a capital of 1 and bet on each score at fair odds, one on "above", one on "below". If the mean is
at most 1/2, the capital of the first is not expected to grow, and it ever reaches 1/alpha with a probability of at most
alpha, however often it is read (Ville 1939, "Etude critique de la notion de collectif", chapter V).

Source: Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting", JRSS B 86, 1-27,
section 4. The stake is not predicted from earlier scores but mixed over a Beta density (Robbins 1970, Annals of
Mathematical Statistics 41, 1397-1409; for bounded scores Orabona and Jun 2024, IEEE Transactions on Information Theory
70, 436-455), so the capital does not depend on the order of the scores. On scores of 0 and 1 it is the Beta mixture of
likelihood ratios of p > 1/2 against p = 1/2, with p = (1 + stake) / 2.
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
"""The most scores in all that a forecast considers."""

_CELLS = 64


@dataclass(frozen=True)
class Stakes:
    """Shares of the capital that are bet on a score, in (0, 1), and the log of how the first capital is spread over them; (64,)."""

    shares: Array
    log_weights: Array


def beta_stakes(a: float, b: float) -> Stakes:
    """Return the stakes of Beta(a, b), cut into 64 equal cells. A mixture of finitely many stakes is as valid as the density."""
    edges = np.linspace(0, 1, _CELLS + 1)
    return Stakes((edges[1:] + edges[:-1]) / 2, np.log(np.diff(betainc(a, b, edges))))


VOTE_STAKES = beta_stakes(2, 2)
"""For single votes: the best stake is 2p - 1, so .2 to .6 for p of .6 to .8."""

VOTER_STAKES = beta_stakes(2, 1)
"""For means of several votes: they vary less, so higher stakes are best (1 or more for a mean of .65 over five votes)."""


@dataclass(frozen=True)
class SequentialTest:
    """The result of the test on the scores so far.

    Args:
        mean: The mean with its confidence sequence, valid at all times at once, at confidence 1 - 2 alpha. Its lower end is
            above 1/2 exactly where ``e_better`` is above the boundary.
        e_better: The capital of the gambler on "above", before the first score and after each, (scores + 1,).
        e_worse: The capital of the gambler on "below", likewise.
        boundary: 1 / alpha.
        better_at: The number of scores, at least ``minimum``, at which ``e_better`` first reached the boundary; None if it
            has not.
        worse_at: The same for ``e_worse``.
    """

    mean: Interval
    e_better: Array
    e_worse: Array
    boundary: float
    better_at: int | None
    worse_at: int | None

    @property
    def e_two_sided(self) -> Array:
        """The mean of both capitals: an e-process against "the mean is 1/2" on both sides (section 4, hedged capital)."""
        return (self.e_better + self.e_worse) / 2


def betting_test(scores: Sequence[float] | Array, stakes: Stakes, *, alpha: float, minimum: int = 1) -> SequentialTest:
    """Test the mean of ``scores`` (n,) in [0, 1] against 1/2 on both sides, each at error ``alpha``.

    The hypothesis of ``e_better`` is that each score has a mean of at most 1/2, given the scores before it.

    Raises:
        GateError: A score is outside [0, 1] or not finite, ``alpha`` is outside (0, 1/2), or ``minimum`` is below 1.
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


def capitals(scores: Sequence[float] | Array, stakes: Stakes) -> tuple[Array, Array]:
    """Return the capitals of both gamblers before the first score and after each, (scores + 1,): "above" and "below" 1/2.

    Raises GateError as ``betting_test`` does.
    """
    x = _scores(scores)
    return _capped_exp(_log_capitals(x, stakes)), _capped_exp(_log_capitals(1 - x, stakes))


def confidence_sequence(scores: Sequence[float] | Array, stakes: Stakes, *, alpha: float) -> Interval:
    """Return the mean with its confidence sequence: confidence 1 - 2 alpha, valid at all times.

    The interval contains the means in [0, 1] against which neither gambler has reached 1/alpha. The capital against a mean m
    is the product of 1 + stake (x / m - 1). It falls in m, so each end is a root (section 4, Theorem 3, with one-sided
    capitals). Without scores the interval is [0, 1] around 1/2. Raises GateError as ``betting_test`` does.
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
    """Estimate how many more scores would bring a capital to 1/alpha if they are distributed like those so far.

    Each stake's capital continues to grow at its mean log growth so far. The estimate is rough for few scores. In
    ``benchmarks/gate_errors.py`` the estimated number is enough in about three of four cases. Raises GateError as
    ``betting_test`` does.

    Returns:
        0 where the boundary is reached now; None without scores, or where more than ``FARTHEST_FORECAST`` scores in all
        would be needed.
    """
    x, limit = _scores(scores), _limit(alpha)
    if len(x) == 0:
        return None
    in_all = min(_scores_in_all(growth, len(x), stakes, limit) for growth in _growths(x, stakes))
    return None if in_all > FARTHEST_FORECAST else max(in_all, minimum) - len(x)


def log_factors(scores: Array, stakes: Stakes, mean: float = 0.5) -> Array:
    """Return the log of the factor by which each score (...,) changes the capital at each stake that bets on "above
    ``mean``", (..., 64).
    """
    return np.asarray(np.log1p(stakes.shares * (scores[..., None] / mean - 1)))


def mixed_log_capital(values: Array, counts: Array, stakes: Stakes, mean: float) -> float:
    """Return the log of the capital that bet on "above ``mean``", after ``counts`` (k,) scores of each of ``values`` (k,)."""
    return float(_mixed(counts @ log_factors(values, stakes, mean), stakes))


def lower_end(values: Array, counts: Array, stakes: Stakes, limit: float) -> float:
    """Return the mean at which the log of that capital is ``limit``. The capital falls in the mean."""

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
    """Return the log of the boundary 1/alpha."""
    if not 0 < alpha < 0.5:
        raise GateError(
            f"an alpha of {alpha} is not an error rate of a test; fix: give one between 0 and 0.5, e.g. 0.05"
        )
    return -math.log(alpha)


def _log_capitals(x: Array, stakes: Stakes) -> Array:
    """Return the log capital before the first score and after every score, (n + 1,)."""
    values, index = np.unique(x, return_inverse=True)
    gains = log_factors(values, stakes)[index].cumsum(axis=0)  # (n, 64)
    return np.concatenate([[0.0], _mixed(gains, stakes)])


def _mixed(log_capitals: Array, stakes: Stakes) -> Array:
    """Return the log of the mixture of the capitals at each stake (..., 64)."""
    weighed = log_capitals + stakes.log_weights
    peaks = weighed.max(axis=-1)
    return np.asarray(peaks + np.log(np.exp(weighed - peaks[..., None]).sum(axis=-1)))


def _capped_exp(log_capital: Array) -> Array:
    return np.asarray(np.exp(np.minimum(log_capital, 700.0)))  # near the largest float64, for JSON and plots


def _first_at(log_capital: Array, limit: float, minimum: int) -> int | None:
    reached = np.flatnonzero(log_capital[minimum:] >= limit)
    return int(reached[0]) + minimum if len(reached) else None


def _growths(x: Array, stakes: Stakes) -> list[Array]:
    """Return the mean log growth per score at each stake, for bets on above and on below, (64,) each."""
    return [log_factors(side, stakes).mean(axis=0) for side in (x, 1 - x)]


def _scores_in_all(growth: Array, scores: int, stakes: Stakes, limit: float) -> int:
    """Return the least n >= ``scores`` at which the mixture reaches ``limit``. The mixture is convex in n, so it crosses once."""

    def stands(n: int) -> bool:
        return bool(_mixed(n * growth, stakes) >= limit)

    return _least(stands, scores, FARTHEST_FORECAST + 1)


def _least(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Return the least n in [low, high] for which ``holds`` is true, given that it stays true; ``high`` if it never is."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
