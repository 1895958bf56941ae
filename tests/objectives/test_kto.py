"""The weights of good and bad answers that KTO chooses: the share of the loss of good ones is 1 to 1.33 times that of bad ones."""

import pytest

from mlflow_finetune_plugin.objectives.kto import KtoOptions, settle


@pytest.mark.parametrize(
    ("good", "bad", "options", "weights"),
    [
        (100, 100, {}, (1.0, 1.0)),
        (120, 100, {}, (1.0, 1.0)),
        (50, 100, {}, (2.0, 1.0)),
        (300, 100, {}, (1.0, 2.256)),
        (300, 100, {"undesirable_weight": 1.0}, (0.443, 1.0)),
        (50, 100, {"undesirable_weight": 2.0}, (4.0, 2.0)),
        (50, 100, {"desirable_weight": 1.0}, (1.0, 0.5)),
        (300, 100, {"desirable_weight": 1.0, "undesirable_weight": 1.0}, (1.0, 1.0)),
    ],
)
def test_weights_balance_the_kinds(good, bad, options, weights):
    reasons = {}
    settled = settle(KtoOptions(**options), {"is_good": [True] * good + [False] * bad}, reasons)
    assert (settled.desirable_weight, settled.undesirable_weight) == weights
    assert set(reasons) == {
        f"options.{name}" for name in ("desirable_weight", "undesirable_weight") if name not in options
    }
    assert all(f"{good} good and {bad} bad" in reason for reason in reasons.values())
