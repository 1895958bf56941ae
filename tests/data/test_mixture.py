"""Shares against the formula, on counts that do not divide evenly."""

import datasets
import numpy as np
import pyarrow as pa
import pytest

from mlflow_finetune_plugin.data.mixture import mix, rows_of, tasks_of

TASKS = pa.array(["small"] * 10 + ["large"] * 1000 + ["middle"] * 90).dictionary_encode()


def drawn(mixture):
    return {share.task: share.drawn for share in mixture.tasks}


def test_proportional_leaves_every_row_as_it_is():
    mixture = mix(TASKS, "proportional", 2.0, seed=0)
    assert mixture.is_unchanged
    assert mixture.indices.tolist() == list(range(1100))


def test_equal_draws_every_task_alike_and_keeps_the_number_of_rows():
    mixture = mix(TASKS, "equal", 2.0, seed=0)
    assert sorted(drawn(mixture).values()) == [366, 367, 367]
    assert len(mixture.indices) == 1100
    times = np.bincount(mixture.indices, minlength=1100)
    assert set(times[:10]) <= {36, 37}  # whole copies, and a sample for the rest
    assert set(times[10:1010]) == {0, 1}


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0, 100.0])
def test_temperature_follows_the_formula(temperature):
    counts = {"large": 1000, "middle": 90, "small": 10}
    weights = {task: count ** (1 / temperature) for task, count in counts.items()}
    for task, rows in drawn(mix(TASKS, "temperature", temperature, seed=0)).items():
        assert abs(rows - 1100 * weights[task] / sum(weights.values())) <= 1


def test_drawing_is_seeded_and_in_order():
    first, again, other = (mix(TASKS, "equal", 2.0, seed=seed).indices for seed in (1, 1, 2))
    assert first.tolist() == again.tolist() != other.tolist()
    assert (np.diff(first) >= 0).all()


def test_every_task_is_drawn_at_least_once():
    tasks = pa.array(["rare"] + ["common"] * 100_000).dictionary_encode()
    assert drawn(mix(tasks, "temperature", 1.01, seed=0))["rare"] >= 1


def test_rows_of_a_task_are_those_of_the_mixture_as_it_was_drawn():
    names = ["a"] * 40 + ["b"] * 8
    rows = datasets.Dataset.from_dict({"row": list(range(48)), "task": names})
    mixture = mix(tasks_of(rows), "equal", 2.0, seed=0)
    drawn_rows = rows.select(mixture.indices)
    alone = {task: rows_of(drawn_rows, task) for task in ("a", "b")}
    assert {task: len(task_rows) for task, task_rows in alone.items()} == {"a": 24, "b": 24}
    for task, task_rows in alone.items():
        assert set(task_rows["task"]) == {task}
        assert task_rows["row"] == [row for row in drawn_rows["row"] if names[row] == task]
    assert len(rows_of(drawn_rows, "c")) == 0
