import math

import pytest

from mlflow_finetune_plugin.evaluation.results import Interval
from mlflow_finetune_plugin.evaluation.scale import describe_forgetting, forgetting_text


@pytest.mark.parametrize(
    ("nats", "word"),
    [
        (-0.3, "none"),
        (0.0, "none"),
        (0.01, "small"),
        (0.02, "small"),
        (0.05, "moderate"),
        (0.2, "large"),
        (3.0, "large"),
    ],
)
def test_forgetting_has_a_word_for_every_size(nats, word):
    assert describe_forgetting(nats) == word


def test_scale_follows_the_scaling_law():
    """Equation 10 of arXiv 2203.15556: the parameter term of the loss is 406.4 / N ** 0.34."""

    def loss(parameters: float) -> float:
        return 406.4 / parameters**0.34

    assert loss(3.5e9) - loss(7e9) == pytest.approx(0.05, abs=0.002)
    assert loss(0.8e9) - loss(7e9) == pytest.approx(0.2, abs=0.005)


def test_forgetting_text_gives_the_word_first():
    assert forgetting_text(Interval(0.02, 0.01, 0.031, "")) == (
        "small, +0.020 nats per token (95 % interval +0.010 to +0.031)"
    )
    assert forgetting_text(Interval(0.02, -math.inf, math.inf, "")) == (
        "small, +0.020 nats per token (no interval: only one text)"
    )
