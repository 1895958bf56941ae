import math
from itertools import combinations

import numpy as np
import pytest

from mlflow_finetune_plugin.gate.statistics.half_samples import half_sample_interval


def test_all_subsets_of_few_clusters_are_taken():
    sums, weights = np.array([1.0, 2.0, 4.0, 8.0]), np.array([1.0, 1.0, 2.0, 2.0])
    subsets = [chosen for size in range(1, 5) for chosen in combinations(range(4), size)]
    means = sorted(sum(sums[list(c)]) / sum(weights[list(c)]) for c in subsets)
    low, high = half_sample_interval(sums, weights, confidence=0.5, seed=0)
    assert (low, high) == pytest.approx((means[3], means[-4]))  # a quarter of 16 sets of signs


def test_it_is_the_exact_sign_test_at_zero():
    """Six gains of six have p = 1/64; five have 1/32, more than 2.5 %."""
    for gains, is_excluded in ((6, True), (5, False)):
        sums = np.array([1.0] * gains + [0.0] * (60 - gains))
        low, high = half_sample_interval(sums, np.ones(60), confidence=0.95, seed=0)
        assert (low > 0) == is_excluded
        assert (-half_sample_interval(-sums, np.ones(60), confidence=0.95, seed=0)[0] < 0) == (high < 0)


def test_too_few_clusters_bound_nothing():
    assert half_sample_interval(np.array([1.0, 2.0]), np.ones(2), confidence=0.95, seed=0) == (-math.inf, math.inf)


def test_a_high_confidence_gets_subsets_enough():
    rng = np.random.default_rng(0)
    low, high = half_sample_interval(rng.normal(1, 1, 100), np.ones(100), confidence=0.9998, seed=0, n_subsets=100)
    assert 0.4 < low < 0.8
    assert 1.2 < high < 1.7


@pytest.mark.simulation
def test_coverage_of_symmetric_clusters_is_what_is_promised():
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(1000):
        low, high = half_sample_interval(rng.standard_t(3, 25), np.ones(25), confidence=0.9, seed=0, n_subsets=1000)
        missed += not low <= 0 <= high
    assert missed / 1000 == pytest.approx(0.1, abs=2 * math.sqrt(0.09 / 1000))
