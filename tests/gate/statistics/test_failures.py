import math

import numpy as np
import pytest
from scipy.stats import hypergeom, nchypergeom_fisher

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered, e_above
from mlflow_finetune_plugin.gate.statistics.failures import FailureTest

ODDS = np.exp(np.linspace(math.log(1.25), math.log(100), 24))


def test_one_batch_is_the_mixture_of_fishers_likelihood_ratios():
    # 20 answers of the candidate with 3 failures, 80 of the champion with 2
    laws = [nchypergeom_fisher.pmf(3, 100, 5, 20, odds) for odds in ODDS]
    expected = np.mean(laws) / hypergeom.pmf(3, 100, 5, 20)
    assert FailureTest().after(Answered(20, 3), Answered(80, 2)).e_worse == pytest.approx(expected)


def test_one_failure_by_hand():
    # the only failure of 20 answers is one of the candidate's 5: odds w against a chance of 1/4
    expected = np.mean([odds / (odds * 0.25 + 0.75) for odds in ODDS])
    assert FailureTest().after(Answered(5, 1), Answered(15, 0)).e_worse == pytest.approx(expected)


@pytest.mark.parametrize(("odds", "compare"), [(1.0, pytest.approx(1.0)), (0.4, None)])
def test_a_batch_is_a_fair_bet_at_even_odds_and_a_bad_one_below(odds, compare):
    shares = range(7)
    chances = [nchypergeom_fisher.pmf(share, 50, 6, 12, odds) for share in shares]
    won = [FailureTest().after(Answered(12, share), Answered(38, 6 - share)).e_worse for share in shares]
    mean = float(np.dot(chances, won))
    assert mean == compare if compare is not None else mean < 1


def test_a_batch_that_compares_nothing_says_nothing():
    test = FailureTest()
    for candidate, champion in (((5, 5), (0, 0)), ((0, 0), (5, 5)), ((9, 0), (99, 0)), ((9, 9), (99, 99))):
        assert test.after(Answered(*candidate), Answered(*champion)).e_worse == pytest.approx(1)


def test_an_outage_of_both_sides_is_no_evidence_whatever_the_rate_before():
    test = FailureTest()
    for _ in range(50):
        test = test.after(Answered(10, 0), Answered(90, 0))
    for _ in range(5):
        test = test.after(Answered(10, 9), Answered(90, 81))
    assert test.e_worse < 1


@pytest.mark.parametrize("rate", [0.01, 0.3])
def test_looking_after_every_batch_errs_no_more_often_than_alpha(rate):
    rng = np.random.default_rng(1)
    crossed = 0
    for _ in range(300):
        test = FailureTest()
        for _ in range(60):
            size = int(rng.binomial(60, 0.1))
            fails = [int(rng.binomial(n, rate)) for n in (size, 60 - size)]
            test = test.after(Answered(size, fails[0]), Answered(60 - size, fails[1]))
            if test.e_worse >= 20:
                crossed += 1
                break
    assert crossed <= 300 * 0.05


def test_answers_that_fail_are_noticed_within_a_few():
    test, answers = FailureTest(), 0
    while test.e_worse < 40:
        test, answers = test.after(Answered(1, 1), Answered(19, 0)), answers + 1
    assert answers == 2


def test_a_bound_is_passed_by_evidence_and_not_by_a_few_failures():
    assert e_above(Answered(0, 0), 0.05) == pytest.approx(1)
    assert e_above(Answered(20, 1), 0.05) < 1
    assert e_above(Answered(20, 3), 0.05) < 40 < e_above(Answered(40, 12), 0.05)
    with pytest.raises(GateError, match="fix:"):
        e_above(Answered(1, 0), 0)


def test_a_bound_is_a_fair_bet_at_the_bound():
    chances = [math.comb(12, k) * 0.05**k * 0.95 ** (12 - k) for k in range(13)]
    assert np.dot(chances, [e_above(Answered(12, k), 0.05) for k in range(13)]) == pytest.approx(1)


def test_counts_that_are_none_are_refused():
    with pytest.raises(GateError, match="3 of 2 answers failed"):
        Answered(2, 3)
