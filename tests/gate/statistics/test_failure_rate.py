"""A share of failures is tested as often as somebody looks, from counts alone."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered, failure_rate, rate_stakes


def rate(failed, answers, at_most=0.01, alpha=0.05):
    return failure_rate(Answered(answers, failed), at_most=at_most, alpha=alpha)


def test_the_capital_is_the_mixture_of_likelihood_ratios():
    stakes = rate_stakes(0.02)
    rates = 0.02 + stakes.shares * 0.98
    ratios = binom.pmf(7, 200, rates) / binom.pmf(7, 200, 0.02)
    assert rate(7, 200, at_most=0.02).evidence == pytest.approx(ratios.mean())
    assert rates[0] == pytest.approx(0.022)
    assert np.exp(stakes.log_weights).sum() == pytest.approx(1)


@pytest.mark.parametrize(("failed", "answers"), [(0, 40), (3, 30), (5, 100), (20, 1000), (25, 1000), (2, 2)])
def test_the_lower_end_is_above_the_bound_exactly_where_the_test_decides(failed, answers):
    result = rate(failed, answers)
    assert (result.rate.low > 0.01) == result.is_above == (result.evidence >= 20)
    assert result.rate.low <= result.rate.value == failed / answers <= result.rate.high


@pytest.mark.simulation
@pytest.mark.parametrize("true_rate", [0.001, 0.01])
def test_looks_after_every_batch_decide_wrongly_in_at_most_alpha_of_all_series(true_rate):
    """A fixed test at the same alpha, looked at as often, is wrong several times more: so the series are hard enough."""
    rng = np.random.default_rng(0)
    batches = rng.binomial(25, true_rate, size=(1000, 100)).cumsum(axis=1)  # 2,500 answers, 100 looks
    answers = 25 * np.arange(1, 101)
    decided = {(n, k): rate(k, int(n)).is_above for k in range(batches.max() + 1) for n in answers if k <= n}
    wrong = np.array([any(decided[n, k] for n, k in zip(answers, series, strict=True)) for series in batches.tolist()])
    assert wrong.mean() <= 0.05
    if true_rate == 0.01:
        fixed = (binom.sf(batches - 1, answers, 0.01) <= 0.05).any(axis=1)
        assert fixed.mean() > 0.2
        assert wrong.mean() > 0.0


def test_three_times_the_bound_is_found_soon():
    rng = np.random.default_rng(1)
    decisions = [rate(int(failed), 1500).is_above for failed in rng.binomial(1500, 0.03, size=200)]
    assert np.mean(decisions) > 0.95


def test_no_answer_knows_nothing_and_broken_counts_are_refused():
    empty = rate(0, 0)
    assert (empty.rate.low, empty.rate.high, empty.evidence, empty.is_above) == (0.0, 1.0, 1.0, False)
    assert math.isfinite(rate(10**6, 10**6).evidence)
    for answers, failed in ((3, 4), (3, -1)):
        with pytest.raises(GateError, match="fix: give 0 <= failed"):
            Answered(answers, failed)
    with pytest.raises(GateError, match="cannot be tested"):
        rate(1, 2, alpha=0.5)
