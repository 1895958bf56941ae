"""The interval of a skewed mean: it allows for a larger value than any seen, and keeps symmetric rows as they are."""

import numpy as np
import pytest

from mlflow_finetune_plugin.evaluation.results import Interval
from mlflow_finetune_plugin.gate.criteria import judge_forgetting
from mlflow_finetune_plugin.gate.evidence import Forgetting
from mlflow_finetune_plugin.gate.policy import ForgettingPolicy
from mlflow_finetune_plugin.gate.statistics.skewed_mean import unseen_value, widen_for_skew

SYMMETRIC = np.concatenate([np.arange(-10, 11), [0.0]]) / 10
SKEWED = np.array([0.0, 0.1, 0.2, 0.3, 2.4, 3.0])


def widened(values, weights=None, low=-1e-9, high=1e-9):
    weights = np.ones(len(values)) if weights is None else weights
    value = float(values @ weights / weights.sum())
    narrow = Interval(value, value + low, value + high, "narrow")
    return widen_for_skew(narrow, values * weights, weights, confidence=0.95, seed=0)


def test_the_added_value_is_as_far_out_as_the_skew_says():
    # The two largest have a mean of 2.7, the two smallest of 0.05, and the median is 0.25: an asymmetry of 2.45 - 0.2.
    assert unseen_value(SKEWED, 1.0) == pytest.approx(1.0 + (3 + 30 / 6) * 2.25)
    assert unseen_value(-SKEWED, -1.0) == -1.0, "skewed to the other side"
    assert unseen_value(SYMMETRIC, 0.0) == pytest.approx(0.0)
    assert unseen_value(np.array([0.5]), 0.5) == 0.5


def test_symmetric_rows_keep_an_interval_that_their_spread_gives():
    error = SYMMETRIC.std(ddof=1) / np.sqrt(len(SYMMETRIC))
    interval = widened(SYMMETRIC, low=-2.1 * error, high=2.1 * error)
    assert (interval.low, interval.high) == (-2.1 * error, 2.1 * error)


def test_only_the_side_of_the_skew_is_far():
    interval, mirrored = widened(SKEWED), widened(-SKEWED)
    assert interval.high - interval.value > 3 * (interval.value - interval.low)
    assert (mirrored.low, mirrored.high) == pytest.approx((-interval.high, -interval.low), rel=0.02)
    assert interval.method == "narrow, allowing for skew"


def test_unit_and_origin_do_not_matter():
    interval, moved = widened(SKEWED), widened(5 + 100 * SKEWED)
    assert (moved.low, moved.high) == pytest.approx((5 + 100 * interval.low, 5 + 100 * interval.high))


def test_weights_count_as_tokens_do():
    weights = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 5.0])
    assert widened(SKEWED, weights).high > widened(SKEWED).high
    assert widened(SKEWED, 7 * weights).high == pytest.approx(widened(SKEWED, weights).high)


@pytest.mark.simulation
@pytest.mark.parametrize("texts", [20, 40])
def test_a_version_that_forgets_as_much_as_the_bound_passes_in_at_most_alpha(texts):
    """Lognormal texts, of which a few carry most of the harm. Without the allowance 7 to 9 % pass."""
    rng, trials, passed = np.random.default_rng(texts), 600, 0
    for _ in range(trials):
        nats = 0.1 * rng.lognormal(-0.72, 1.2, texts)
        measured = Forgetting(tuple(map(str, range(texts))), tuple(nats.tolist()), (500.0,) * texts)
        passed += judge_forgetting(ForgettingPolicy(at_most=0.1), measured).outcome == "pass"
    assert passed / trials <= 0.025 + 2 * np.sqrt(0.025 * 0.975 / trials)
