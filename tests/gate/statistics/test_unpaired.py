"""The difference of two unrelated sets of rows, against published and simulated figures."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_ind

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.gate.statistics.unpaired import Sample, difference_interval


def binary(hits, rows, **more):
    return Sample((1.0,) * hits + (0.0,) * (rows - hits), **more)


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [  # Newcombe 1998, table II, method 10
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((10, 10), (0, 20), 0.6791, 1.0),
    ],
)
def test_binary_rows_get_newcombe_s_interval(first, second, low, high):
    interval = difference_interval(binary(*first), binary(*second))
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


def test_other_rows_get_welch_s_interval():
    rng = np.random.default_rng(0)
    first, second = rng.normal(1, 1, 30), rng.normal(0, 3, 12)
    expected = ttest_ind(first, second, equal_var=False).confidence_interval(0.9)
    interval = difference_interval(Sample(tuple(first)), Sample(tuple(second)), confidence=0.9)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert interval.value == pytest.approx(first.mean() - second.mean())


def test_rows_that_stand_twice_do_not_count_twice():
    rng = np.random.default_rng(0)
    values = rng.binomial(1, 0.5, 40).astype(float)
    other = binary(30, 60)
    once = difference_interval(Sample(tuple(values), clusters=tuple(range(40))), other)
    twice = difference_interval(Sample(tuple(np.repeat(values, 2)), clusters=tuple(np.repeat(range(40), 2))), other)
    assert (once.low, once.high) == pytest.approx((twice.low, twice.high))


def test_weights_make_it_a_ratio_of_sums():
    first = Sample((1.0, 3.0, 2.0), weights=(10.0, 1.0, 1.0))
    assert difference_interval(first, Sample((0.0, 1.0))).value == pytest.approx(15 / 12 - 0.5)


@pytest.mark.parametrize("alike", [Sample((2.0,) * 5), Sample((2.0,)), Sample((1.0, 2.0), clusters=("a", "a"))])
def test_rows_without_spread_bound_nothing(alike):
    interval = difference_interval(alike, Sample((0.0, 1.0, 2.0)))
    assert (interval.low, interval.high) == (-math.inf, math.inf)
    assert "the first rows have no spread" in interval.method


@pytest.mark.parametrize("kind", ["binary", "clustered", "skewed"])
def test_it_holds_the_truth_as_often_as_it_says(kind):
    rng = np.random.default_rng(3)

    def draw(rows):
        if kind == "binary":
            return binary(int(rng.binomial(rows, 0.8)), rows)
        if kind == "clustered":
            means = np.repeat(rng.normal(0, 1, rows // 2), 2)
            return Sample(tuple(means + rng.normal(0, 0.3, len(means))), clusters=tuple(np.repeat(range(rows // 2), 2)))
        return Sample(tuple(rng.exponential(1, rows)))

    intervals = [difference_interval(draw(80), draw(40)) for _ in range(600)]
    assert 0.92 <= np.mean([interval.low <= 0 <= interval.high for interval in intervals]) <= 0.98


def test_broken_values_are_refused():
    for values in ((), (1.0, math.nan)):
        with pytest.raises(GateError):
            Sample(values)
