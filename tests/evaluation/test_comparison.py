"""Task by task, and the mixture against single-task adapters, on answers written by hand."""

import numpy as np
import pytest

from mlflow_finetune_plugin.evaluation.comparison import AnswerSet, compare_tasks, load_metrics
from mlflow_finetune_plugin.evaluation.interference import interference
from mlflow_finetune_plugin.evaluation.proof import gain_over
from mlflow_finetune_plugin.evaluation.results import EvalReport, EvalRow, Interval, MetricResult


def rows(tasks):
    return [EvalRow((), (1,), (2, 3), "yes", task, "f", line) for line, task in enumerate(tasks)]


def side(answers, nats=1.0):
    return AnswerSet(list(answers), np.full(len(answers), nats))


def test_each_task_is_compared_on_its_own_rows():
    held_out = rows(["a", "b", "a", "b", "b"])
    tasks = compare_tasks(
        load_metrics(["exact_match"]), held_out, side(["no"] * 5), side(["yes", "no", "yes", "yes", "no"]), seed=0
    )
    assert [(task, result.rows, result.base, result.adapter) for task, (result,) in tasks.items()] == [
        ("a", 2, 0.0, 1.0),
        ("b", 3, 0.0, pytest.approx(1 / 3)),
    ]


def test_one_task_is_not_compared_twice():
    assert compare_tasks(load_metrics(["exact_match"]), rows("aaa"), side("xyz"), side("xyz"), seed=0) == {}


def test_interference_is_the_mixture_minus_the_task_alone():
    held_out = rows(["a", "b", "a", "b"])
    records = tuple({"adapter_answer": answer, "adapter_nats_per_token": 0.5} for answer in ["yes", "no", "yes", "yes"])
    proof = EvalReport(metrics=(), forgetting=None, rows=records)
    singles = {"a": side(["no", "yes"], nats=2.0), "b": side(["yes", "yes"], nats=2.0)}
    costs = interference(proof, held_out, singles, metrics=["exact_match", "perplexity"], seed=0)
    exact = {task: results[0] for task, results in costs.items()}
    assert (exact["a"].base, exact["a"].adapter, exact["a"].gain.value) == (0.5, 1.0, 0.5)
    assert (exact["b"].base, exact["b"].adapter, exact["b"].gain.value) == (1.0, 0.5, -0.5)
    assert costs["a"][1].adapter == pytest.approx(np.exp(0.5))  # nats per token back to nats per row and again


def test_gain_over_another_adapter_reads_the_recorded_rewards():
    """A row that a part of the reward did not apply to is left out of both sides."""
    held_out = rows("a" * 16)
    records = tuple(
        {"adapter_answer": "yes", "adapter_nats_per_token": 0.5, "adapter_reward": reward}
        for reward in [*[2.0, 4.0, 3.0] * 5, np.nan]
    )
    proven = MetricResult("reward", 0.0, 3.0, Interval(3.0, 2.0, 4.0, "any"), higher_is_better=True, rows=16)
    proof = EvalReport(metrics=(proven,), forgetting=None, rows=records)
    other = AnswerSet(["no"] * 16, np.ones(16), rewards={"reward": np.array([*[1.0] * 15, 9.0])})
    (gain,) = gain_over(proof, held_out, other, metrics=["reward"], seed=0)
    assert (gain.base, gain.adapter, gain.gain.value) == (1.0, 3.0, 2.0)
