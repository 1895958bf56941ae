"""The metric ``reward``: a paired mean of what scored the answers, which no text can replace."""

import numpy as np
import pytest

from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.evaluation.comparison import AnswerSet, compare, load_metrics
from mlflow_finetune_plugin.evaluation.results import EvalRow, has_reference

NAN = float("nan")


def row(reference="", fields="{}"):
    return EvalRow((), (1,), (2,), reference, "t", "f", 1, fields=fields)


def side(*rewards, name="reward"):
    return AnswerSet(["a"] * len(rewards), np.zeros(len(rewards)), rewards={name: np.array(rewards)})


def compared(base, adapter, name="reward"):
    (module,) = load_metrics([name])
    return compare(module, [row()] * len(base.answers), base, adapter, seed=0)


def test_gain_is_the_difference_of_the_mean_rewards():
    result, scores = compared(side(0.0, 0.5, 0.25, 0.0), side(1.0, 0.5, 0.75, 0.5))
    assert (result.base, result.adapter, result.gain.value) == pytest.approx((0.1875, 0.6875, 0.5))
    assert result.gain.low <= 0.5 <= result.gain.high
    assert scores == {"base_reward": [0.0, 0.5, 0.25, 0.0], "adapter_reward": [1.0, 0.5, 0.75, 0.5]}


def test_a_row_whose_reward_is_missing_on_one_side_counts_for_neither():
    result, scores = compared(side(0.0, NAN, 0.0), side(1.0, 1.0, 0.0))
    assert (result.base, result.adapter, result.rows) == (0.0, 0.5, 2)
    assert scores["adapter_reward"] == pytest.approx([1.0, NAN, 0.0], nan_ok=True)


def test_a_part_that_never_applies_is_no_gain_and_no_error():
    result, scores = compared(side(NAN, NAN), side(NAN, 1.0))
    assert (result.gain.value, result.is_better, result.rows, scores) == (0.0, False, 0, {})


def test_a_part_of_the_reward_is_a_metric_too():
    result, _ = compared(side(0.0, name="reward/exact"), side(1.0, name="reward/exact"), "reward/exact")
    assert (result.name, result.gain.value) == ("reward/exact", 1.0)


def test_answers_that_were_not_scored_are_refused_with_a_fix():
    with pytest.raises(DataError, match=r"needs answers that were scored.*fix: name another metric"):
        compared(AnswerSet(["a"], np.zeros(1)), side(1.0))


def test_rewards_of_some_rows_are_those_of_these_rows():
    assert side(0.0, 1.0, 2.0).at([2, 0]).rewards["reward"].tolist() == [2.0, 0.0]


def test_only_a_prompt_may_lack_a_reference():
    assert has_reference(row("4"))
    assert has_reference(row("", fields=""))
    assert not has_reference(row())
