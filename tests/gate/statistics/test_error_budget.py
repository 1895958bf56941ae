import math

import numpy as np
import pytest

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.gate.statistics.error_budget import candidate_alpha, discovery_alpha


def test_shares_sum_to_the_budget():
    total = sum(candidate_alpha(0.05, i) for i in range(1, 100_001))
    assert 0.05 * (1 - 1e-5) < total < 0.05


def test_first_candidate_gets_six_over_pi_squared():
    assert candidate_alpha(0.05, 1) == pytest.approx(0.03039636)
    assert candidate_alpha(0.05, 10) == pytest.approx(0.0003039636)


@pytest.mark.parametrize(("alpha", "number"), [(0.0, 1), (1.0, 1), (math.nan, 1), (0.05, 0)])
def test_impossible_budgets_are_refused(alpha, number):
    with pytest.raises(GateError, match="fix:"):
        candidate_alpha(alpha, number)


def test_each_discovery_gives_the_next_test_as_much_again():
    assert discovery_alpha(0.05, 3, 0) == candidate_alpha(0.05, 3)
    assert discovery_alpha(0.05, 3, 2) == pytest.approx(3 * candidate_alpha(0.05, 3))
    with pytest.raises(GateError, match="3 discoveries before test 3"):
        discovery_alpha(0.05, 3, 3)


@pytest.mark.simulation
def test_of_all_discoveries_at_most_alpha_are_false():
    """E-values of 1/alpha times a coin, the worst case; half of the candidates are better and nearly always discovered."""
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(2000):
        discoveries = wrong = 0
        for number in range(1, 31):
            alpha = discovery_alpha(0.05, number, discoveries)
            is_better = rng.random() < 0.5
            if rng.random() < (0.95 if is_better else alpha):
                discoveries, wrong = discoveries + 1, wrong + (not is_better)
        shares.append(wrong / max(discoveries, 1))
    assert np.mean(shares) <= 0.05
