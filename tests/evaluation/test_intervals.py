import math

import numpy as np
import pytest

from mlflow_finetune_plugin.errors import FinetuneError
from mlflow_finetune_plugin.evaluation import intervals
from mlflow_finetune_plugin.evaluation.intervals import (
    mean_interval,
    paired_binary_interval,
    paired_bootstrap_interval,
    paired_recompute_interval,
)


def paired_hits(both, base_only, adapter_only, neither):
    base = [1] * both + [1] * base_only + [0] * adapter_only + [0] * neither
    adapter = [1] * both + [0] * base_only + [1] * adapter_only + [0] * neither
    return base, adapter


def mean_of(values):
    return np.stack([np.asarray(values, dtype=float), np.ones(len(values))], axis=1)


def mean_score(sums):
    return sums[..., 0] / sums[..., 1]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        # Fagerland, Lydersen, Laake 2014, Statistics in Medicine 33, 2850-2875: Bentur et al. 2009, airway data
        ((1, 7, 1, 12), (-0.286, -0.517, -0.026)),
        # Fagerland, Lydersen, Laake 2017, Statistical Analysis of Contingency Tables, ch. 8: Cavo et al. 2012
        ((59, 16, 6, 80), (-0.062, -0.124, -0.005)),
    ],
)
def test_tango_interval_equals_published_examples(table, expected):
    interval = paired_binary_interval(*paired_hits(*table))
    assert (interval.value, interval.low, interval.high) == pytest.approx(expected, abs=5e-4)


def test_tango_interval_swaps_with_its_sides():
    base, adapter = paired_hits(10, 3, 12, 5)
    there, back = paired_binary_interval(base, adapter), paired_binary_interval(adapter, base)
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))


@pytest.mark.parametrize(
    ("base", "adapter", "value", "low", "high"),
    [
        # without discordant rows the bound solves rows * d / (1 - d) = z^2, so d = z^2 / (rows + z^2), z^2 = 3.8415
        ([0], [0], 0, -3.8415 / 4.8415, 3.8415 / 4.8415),
        ([1] * 96, [1] * 96, 0, -3.8415 / 99.8415, 3.8415 / 99.8415),
        ([0], [1], 1, -0.5869, 1),
        ([1] * 20, [0] * 20, -1, -1, -0.6778),
    ],
)
def test_tango_interval_has_a_width_where_nothing_varies(base, adapter, value, low, high):
    interval = paired_binary_interval(base, adapter)
    assert (interval.value, interval.low, interval.high) == pytest.approx((value, low, high), abs=1e-4)


def test_tango_interval_covers():
    rng = np.random.default_rng(0)
    cells = rng.multinomial(100, [0.3, 0.05, 0.45, 0.2], size=2000)  # true gain 0.40
    unique, counts = np.unique(cells[:, 1:3], axis=0, return_counts=True)
    held = [
        i.low <= 0.4 <= i.high for b, a in unique for i in [paired_binary_interval(*paired_hits(0, b, a, 100 - a - b))]
    ]
    assert 0.935 <= np.average(held, weights=counts) <= 0.965


def test_bootstrap_interval_of_a_mean_agrees_with_students_t():
    rng = np.random.default_rng(1)
    base, adapter = rng.normal(0, 1, 40), rng.normal(0.5, 1, 40)
    interval = paired_bootstrap_interval(mean_of(base), mean_of(adapter), mean_score, True, seed=0, n_resamples=20000)
    gain = adapter - base
    reach = 2.0227 * gain.std(ddof=1) / math.sqrt(40)  # t with 39 degrees of freedom
    assert interval.value == pytest.approx(gain.mean())
    assert (interval.low, interval.high) == pytest.approx((gain.mean() - reach, gain.mean() + reach), abs=0.03)
    assert interval.method == "expanded percentile bootstrap, 20000 resamples"


def test_gain_is_positive_when_less_is_better_and_the_adapter_has_less():
    base, adapter = mean_of([3, 4, 5, 4]), mean_of([1, 2, 2, 1])
    interval = paired_bootstrap_interval(base, adapter, mean_score, False, seed=0)
    assert interval.value == 2.5
    assert 1.9 < interval.low < 2.5 < interval.high < 3.1


def test_same_seed_same_interval_whatever_the_chunks(monkeypatch):
    rng = np.random.default_rng(2)
    base, adapter = mean_of(rng.random(50)), mean_of(rng.random(50))
    whole = paired_bootstrap_interval(base, adapter, mean_score, True, seed=3)
    assert whole == paired_bootstrap_interval(base, adapter, mean_score, True, seed=3)
    assert whole != paired_bootstrap_interval(base, adapter, mean_score, True, seed=4)
    monkeypatch.setattr(intervals, "_WEIGHTS_PER_CHUNK", 170)
    chunked = paired_bootstrap_interval(base, adapter, mean_score, True, seed=3)
    assert (chunked.low, chunked.high) == pytest.approx((whole.low, whole.high))


def test_bootstrap_interval_covers_on_thirty_rows():
    rng = np.random.default_rng(4)
    held = 0
    for sample in range(1000):
        base = rng.binomial(10, 0.3, size=30) / 10
        adapter = np.clip(base + rng.binomial(10, 0.3, size=30) / 10 - 0.1, -1, 2)  # true gain 0.2
        interval = paired_bootstrap_interval(mean_of(base), mean_of(adapter), mean_score, True, sample, n_resamples=500)
        held += interval.low <= 0.2 <= interval.high
    assert 0.93 <= held / 1000 <= 0.97


def test_one_row_leaves_the_bootstrap_interval_unbounded():
    interval = paired_bootstrap_interval(mean_of([0.2]), mean_of([0.7]), mean_score, True, seed=0)
    assert (interval.value, interval.low, interval.high) == (pytest.approx(0.5), -math.inf, math.inf)
    assert interval.method == "none: one row has no spread"


def test_equal_rows_give_no_width_and_say_so():
    interval = paired_bootstrap_interval(mean_of([0.0] * 9), mean_of([1.0] * 9), mean_score, True, seed=0)
    assert (interval.low, interval.value, interval.high) == (1.0, 1.0, 1.0)
    assert interval.method.endswith("no variation between rows")


def test_forgetting_weighs_tokens_and_is_positive_when_the_adapter_needs_more_nats():
    base = [[10.0, 10], [60.0, 30]]  # 70 nats on 40 tokens
    adapter = [[12.0, 10], [66.0, 30]]  # 78 on 40
    interval = mean_interval(base, adapter)
    assert interval.value == pytest.approx(0.2)
    assert (interval.low, interval.high) == pytest.approx((0.2, 0.2))


@pytest.mark.parametrize(
    ("base", "adapter", "message"),
    [
        (
            [[1.0, 1], [math.nan, 1]],
            [[1.0, 1], [1.0, 1]],
            "1 of 2 rows of the base have values that are not finite, first row 1",
        ),
        ([[1.0, 1]], [[math.inf, 1]], "rows of the adapter have values that are not finite, first row 0"),
        ([[1.0, 1]], [[1.0, 1], [1.0, 1]], "both must answer the same rows"),
        (np.empty((0, 2)), np.empty((0, 2)), "there are no rows to compare"),
        (
            [[0.0, 0], [0.0, 0]],
            [[0.0, 0], [0.0, 0]],
            "the gain over all 2 rows is nan; fix: check that the rows have tokens",
        ),
        ([[0.0, 0], [1.0, 1]], [[0.0, 0], [1.0, 1]], "not a number on .* of 2000 bootstrap resamples"),
    ],
)
def test_rows_that_cannot_be_compared_are_named(base, adapter, message):
    with pytest.raises(FinetuneError, match=message):
        mean_interval(base, adapter)


def test_binary_interval_refuses_other_values():
    with pytest.raises(FinetuneError, match="one 0 or 1 per row"):
        paired_binary_interval([0, 0.5], [1, 1])


def test_recomputed_interval_equals_the_additive_one():
    rng = np.random.default_rng(5)
    base, adapter = rng.random(60), rng.random(60)
    additive = paired_bootstrap_interval(mean_of(base), mean_of(adapter), mean_score, True, seed=0, n_resamples=4000)
    recomputed = paired_recompute_interval(lambda rows: float((adapter - base)[rows].mean()), 60, 1, n_resamples=4000)
    assert recomputed.value == pytest.approx(additive.value)
    assert (recomputed.low, recomputed.high) == pytest.approx((additive.low, additive.high), abs=0.01)
