"""The proof of a reward model on pairs whose figures are known."""

import dataclasses

import numpy as np
import pytest

from mlflow_finetune_plugin.evaluation.comparison import AnswerSet
from mlflow_finetune_plugin.evaluation.results import EvalReport, EvalRow, Interval, MetricResult
from mlflow_finetune_plugin.evaluation.rewards import length_rule, reward_figures
from mlflow_finetune_plugin.stages.records.description import reward_lines


def pair(number: int, better: int, worse: int) -> EvalRow:
    """Return a pair whose answers have so many tokens; every number is a prompt."""
    return EvalRow(
        messages=({"role": "user", "content": f"question {number}"},),
        prompt_ids=(1,),
        completion_ids=(2,) * better,
        reference="better",
        task="t",
        source="pairs.jsonl",
        line=number,
        rejected="worse",
        rejected_ids=(3,) * worse,
    )


def accuracy(rewards: AnswerSet) -> float:
    return float(np.mean(rewards.rejected_nats > rewards.nats))


@pytest.mark.parametrize(
    ("lengths", "right", "words"),
    [
        ([(3, 1)] * 6 + [(1, 2)] * 2, 0.75, "the rule 'the longer answer wins'"),
        ([(1, 3)] * 6 + [(2, 1)] * 2, 0.75, "the rule 'the shorter answer wins'"),
        ([(2, 2)] * 8, 0.5, "the rule 'the longer answer wins'"),  # ties by turns
        ([(2, 2)] * 4 + [(1, 3)] * 4, 0.75, "the rule 'the shorter answer wins'"),
    ],
)
def test_the_rule_of_length_is_the_better_one_of_two(lengths, right, words):
    rule, name = length_rule([pair(i, *each) for i, each in enumerate(lengths)])
    assert (accuracy(rule), name) == (right, words)


def test_figures_of_a_calibrated_and_of_an_overconfident_model():
    rng = np.random.default_rng(0)
    margins = np.abs(rng.normal(0, 1.5, 4000))
    right = rng.random(4000) < 1 / (1 + np.exp(-margins))
    signed = np.where(right, margins, -margins)
    rows = [pair(i, 4, 2) for i in range(4000)]
    calibrated = reward_figures(rows, AnswerSet.of_rewards(signed / 2, -signed / 2), seed=0)
    sure = reward_figures(rows, AnswerSet.of_rewards(2 * signed, -2 * signed), seed=0)
    assert calibrated.calibration_error < 0.03
    assert sure.calibration_error > 0.1
    assert calibrated.accuracy.value == sure.accuracy.value == right.mean()
    assert calibrated.accuracy.low < right.mean() < calibrated.accuracy.high
    assert calibrated.mean == pytest.approx(0)
    assert sure.margin == pytest.approx(4 * calibrated.margin)
    assert sum(bucket.pairs for bucket in calibrated.calibration) == 4000
    assert [round(bucket.low, 1) for bucket in calibrated.calibration] == [0.5, 0.6, 0.7, 0.8, 0.9]
    assert calibrated.longer_wins == 1.0


def test_rewards_that_follow_the_length_are_reported():
    rows = [pair(i, 3 + i % 5, 1 + i % 3) for i in range(60)]
    lengths = AnswerSet.of_rewards(
        np.array([len(row.completion_ids) for row in rows], dtype=float),
        np.array([len(row.rejected_ids) for row in rows], dtype=float),
    )
    figures = reward_figures(rows, lengths, seed=0)
    assert figures.length_correlation == pytest.approx(1.0)
    assert "correlate with it by +1.00" in " ".join(reward_lines(figures))
    constant = reward_figures([pair(i, 2, 2) for i in range(6)], AnswerSet.of_rewards(np.ones(6), np.zeros(6)), seed=0)
    assert constant.length_correlation is None
    assert "rewards do not vary with it" in " ".join(reward_lines(constant))


def test_pairs_of_one_prompt_are_one_draw():
    alone = [pair(i, 2, 2) for i in range(40)]
    shared = [
        dataclasses.replace(row, messages=({"role": "user", "content": str(i // 8)},)) for i, row in enumerate(alone)
    ]
    rewards = AnswerSet.of_rewards(np.where(np.arange(40) // 8 < 4, 1.0, -1.0), np.zeros(40))
    narrow, wide = (reward_figures(rows, rewards, seed=0).accuracy for rows in (alone, shared))
    assert narrow.value == wide.value == 0.8
    assert wide.high - wide.low > narrow.high - narrow.low


@pytest.mark.parametrize(
    ("gain_low", "accuracy_low", "is_better"), [(0.1, 0.6, True), (-0.01, 0.6, False), (0.1, 0.49, False)]
)
def test_a_reward_model_is_better_only_beyond_length_and_chance(gain_low, accuracy_low, is_better):
    gain = Interval(0.2, gain_low, 0.4, "m")
    metric = MetricResult("preference_accuracy", 0.5, 0.7, gain, higher_is_better=True, rows=10)
    figures = reward_figures([pair(i, 2, 1) for i in range(4)], AnswerSet.of_rewards(np.ones(4), np.zeros(4)), seed=0)
    figures = dataclasses.replace(figures, accuracy=Interval(0.7, accuracy_low, 0.9, "m"))
    assert EvalReport((metric,), None, (), rewards=figures).is_better == is_better
    assert EvalReport((metric,), None, ()).is_better  # a model that answers: its gain is above 0
