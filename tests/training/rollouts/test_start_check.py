"""The figures of the sampled start."""

import math

import pytest

from mlflow_finetune_plugin.rewards import RewardScores
from mlflow_finetune_plugin.training.rollouts.start_check import StartFigures


def figures(*totals, parts=None, pass_reward=1.0, num_generations=2):
    values = list(totals)
    parts = parts or {"exact": values}
    scores = RewardScores(parts, values, {name: [None] * len(values) for name in parts}, 0)
    return StartFigures.of(scores, num_generations, pass_reward)


def test_pass_at_k_counts_prompts_and_pass_at_1_completions():
    at_start = figures(1.0, 0.0, 0.0, 0.0, 1.0, 1.0)
    assert (at_start.prompts, at_start.pass_at_1, at_start.pass_at_k) == (3, pytest.approx(0.5), pytest.approx(2 / 3))
    assert (at_start.reward, at_start.flat_groups) == (pytest.approx(0.5), pytest.approx(2 / 3))
    assert at_start.why_refused() is None


def test_solved_means_at_least_the_pass_reward():
    assert figures(0.5, 0.4, 0.7, 0.2, pass_reward=0.5).pass_at_1 == 0.5


def test_solved_is_decided_by_the_first_part_because_a_penalty_lowers_the_sum():
    parts = {"exact": [1.0, 0.0], "short": [-0.1, -0.1]}
    assert figures(0.9, -0.1, parts=parts).pass_at_1 == 0.5


def test_a_missing_reward_is_neither_solved_nor_a_difference():
    at_start = figures(1.0, None, None, None)
    assert (at_start.pass_at_1, at_start.flat_groups, at_start.reward) == (0.25, 1.0, 1.0)
    assert math.isnan(figures(None, None).reward)


def test_equal_rewards_that_differ_in_the_last_bit_are_flat():
    assert figures(0.1 + 0.2, 0.3).flat_groups == 1.0


@pytest.mark.parametrize(
    ("totals", "words"),
    [
        ((0.0, 0.0, 0.0, 0.0), "the completions of each have the same reward"),
        ((1.0, 1.0, 1.0, 1.0), "nearly every completion is solved already"),
    ],
)
def test_a_start_without_a_signal_is_refused_with_its_reason(totals, words):
    assert words in figures(*totals).why_refused()


def test_one_prompt_of_twenty_with_a_signal_is_refused_and_two_are_not():
    assert figures(*[0.0] * 38, 1.0, 0.0).why_refused() is not None
    assert figures(*[0.0] * 36, 1.0, 0.0, 1.0, 0.0).why_refused() is None


def test_a_part_that_alone_makes_the_signal_is_noted():
    parts = {"exact": [0.0] * 4, "short": [-0.1, -0.2, -0.1, -0.3]}
    (note,) = figures(-0.1, -0.2, -0.1, -0.3, parts=parts).notes()
    assert "exact is the same for all completions of a prompt; only short differs" in note
    assert figures(1.0, 0.0).notes() == []


def test_metrics_have_the_number_of_completions_in_their_name():
    names = figures(1.0, 0.0).metrics(2)
    assert set(names) == {
        "start/pass_at_1", "start/pass_at_2", "start/reward", "start/reward_std", "start/flat_groups",
        "start/rewards/exact", "start/flat_groups/exact",
    }  # fmt: skip
