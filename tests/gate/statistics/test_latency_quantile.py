"""Bounds of a percentile that hold however often they are read."""

import math

import numpy as np
import pytest

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered, e_above
from mlflow_finetune_plugin.gate.statistics.failures import FailureTest
from mlflow_finetune_plugin.gate.statistics.latency_quantile import (
    LatencyWindow,
    answers_still_needed,
    over_budget,
    p95_interval,
    p95_ratio,
)
from mlflow_finetune_plugin.store.latency_counts import EDGES_MS, LatencyCounts, edge_from

Z95 = 1.6449


def test_the_lower_end_is_the_highest_edge_at_which_the_test_has_decided():
    counts = LatencyCounts.of(np.random.default_rng(0).lognormal(6, 0.5, 400))
    interval = p95_interval(counts, alpha=0.05)
    assert interval.low < counts.quantile_ms(0.95) == interval.value < interval.high
    low, high = edge_from(interval.low), edge_from(interval.high)
    assert e_above(Answered(400, counts.from_edge(low)), 0.05) >= 20
    assert e_above(Answered(400, counts.from_edge(low + 1)), 0.05) < 20
    assert counts.from_edge(high) < 0.05 * 400 < counts.from_edge(low)


def test_few_answers_have_no_upper_end_and_more_narrow_the_interval():
    assert p95_interval(LatencyCounts.of([100.0] * 60), alpha=0.05).high == math.inf
    rng = np.random.default_rng(0)
    few, many = (p95_interval(LatencyCounts.of(rng.lognormal(6, 0.5, n)), alpha=0.05) for n in (300, 5000))
    assert few.low < many.low < many.high < few.high
    assert p95_interval(LatencyCounts.of([100.0] * 300), alpha=0.05).high == EDGES_MS[edge_from(100.0)]


def test_counting_answers_again_is_having_them_again():
    counts = LatencyCounts.of(np.random.default_rng(0).lognormal(6, 0.5, 300))
    assert p95_interval(counts, alpha=0.05, repeats=2) == p95_interval(counts + counts, alpha=0.05)
    needed = answers_still_needed(lambda repeats: p95_interval(counts, alpha=0.05, repeats=repeats).high < 1000, 300)
    assert p95_interval(counts, alpha=0.05, repeats=(300 + needed) / 300).high < 1000
    assert p95_interval(counts, alpha=0.05, repeats=(299 + needed) / 300).high >= 1000
    assert answers_still_needed(lambda repeats: False, 300) is None


def test_the_ratio_shares_alpha_between_the_sides():
    champion = LatencyCounts.of([100.0] * 300)
    candidate = LatencyCounts.of([200.0] * 300)
    ratio = p95_ratio(candidate, champion, alpha=0.05)
    above, below = (p95_interval(side, alpha=0.025) for side in (candidate, champion))
    assert (ratio.low, ratio.high) == (above.low / below.high, above.high / below.low)
    assert 1.9 < ratio.low < ratio.value < ratio.high < 2.1
    assert ratio.value == pytest.approx(2, rel=0.02)


def test_an_answer_at_the_budget_is_within_it():
    budget_ms = EDGES_MS[300]
    counts = LatencyCounts.of([budget_ms * 0.99, budget_ms * 0.999, budget_ms * 1.001])
    assert over_budget(counts, budget_ms) == Answered(3, 1)
    assert over_budget(counts, budget_ms * 1.001) == Answered(3, 0), "the rest of the bucket is within it"


def test_slow_answers_of_a_window_are_measured_by_earlier_ones():
    earlier = LatencyCounts.of([100.0] * 95 + [200.0] * 5)
    window = LatencyWindow(LatencyCounts.of([110.0, 160.0, 300.0]), LatencyCounts.of([99.0, 110.0]), earlier)
    assert window.slow(1.0) == (Answered(3, 3), Answered(2, 1))
    assert window.slow(1.5) == (Answered(3, 2), Answered(2, 1))
    assert LatencyWindow(window.candidate, window.champion, LatencyCounts.of([1.0] * 19)).slow(1.5) is None
    assert LatencyWindow(LatencyCounts(), window.champion, earlier).slow(1.5) is None


def test_what_cannot_be_bounded_is_refused():
    for counts, alpha in ((LatencyCounts(), 0.05), (LatencyCounts.of([1.0]), 0.5), (LatencyCounts.of([1.0]), 0.0)):
        with pytest.raises(GateError, match="cannot be bounded"):
            p95_interval(counts, alpha=alpha)


@pytest.mark.simulation
@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_an_end_is_ever_wrong_in_at_most_alpha_of_all_series(sigma):
    rng, true_ms = np.random.default_rng(0), math.exp(5 + Z95 * sigma)
    too_high = too_low = 0
    for _ in range(150):
        counts, is_high, is_low = LatencyCounts(), False, False
        for _ in range(20):
            counts += LatencyCounts.of(rng.lognormal(5, sigma, 25))
            interval = p95_interval(counts, alpha=0.05)
            is_high, is_low = is_high or interval.low > true_ms, is_low or interval.high < true_ms
        too_high, too_low = too_high + is_high, too_low + is_low
    limit = 0.05 * 150 + 2 * math.sqrt(150 * 0.05 * 0.95)
    assert too_high <= limit
    assert too_low <= limit


@pytest.mark.simulation
@pytest.mark.parametrize(("factor", "most", "least"), [(1.2, 0.09, 0.0), (2.0, 1.0, 0.8)])
def test_windows_of_two_versions_show_which_one_is_slower(factor, most, least):
    """The load changes from window to window, for both: at most 1.2 times as slow, or twice."""
    rng, trials, shown = np.random.default_rng(0), 120, 0
    for _ in range(trials):
        test, earlier = FailureTest(), LatencyCounts.of(rng.lognormal(5, 0.5, 60))
        for _ in range(30):
            load = rng.lognormal(5, 0.3)
            champion = LatencyCounts.of(load * rng.lognormal(0, 0.5, 20))
            candidate = LatencyCounts.of(factor * load * rng.lognormal(0, 0.5, 20))
            test = test.after(*LatencyWindow(candidate, champion, earlier).slow(1.2))
            earlier += champion
            if test.e_worse >= 20:
                shown += 1
                break
    assert least <= shown / trials <= most
