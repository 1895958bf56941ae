import math

import pytest

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.gate.statistics.error_budget import candidate_alpha


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
