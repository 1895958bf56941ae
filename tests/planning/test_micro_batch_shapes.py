"""The micro-batches of a run, without its tokens: as many and as large as training makes them."""

from __future__ import annotations

import datasets
import numpy as np
import pytest

from mlflow_finetune_plugin.config.sections import TrainingSettings
from mlflow_finetune_plugin.planning.micro_batch_shapes import RowLengths, shapes_of, steps_of


def settings(**values):
    given = {"batching": "packed", "max_batch_tokens": 100, "num_train_epochs": 2.0}
    given |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "seed": 0}
    return TrainingSettings(**{**given, **values})


@pytest.fixture
def lengths():
    return RowLengths(10 * np.arange(1, 9)[:, None], np.arange(1, 9)[:, None])


def test_lengths_are_counted_from_labels():
    rows = datasets.Dataset.from_dict({"labels": [[-100, -100, 5], [7, 8], [-100, 9, 9, -100]]})
    found = RowLengths.of(rows)
    assert found.tokens.tolist() == [[3], [2], [4]]
    assert found.scored.tolist() == [[1], [1], [2]]  # a row's first token is predicted by nothing


def test_a_pair_has_two_sequences_in_one_micro_batch():
    rows = {"labels": [[-100, 5], [-100, 6, 7]], "rejected_labels": [[-100, 5, 5, 5], [-100, 6]]}
    pairs = RowLengths.of(datasets.Dataset.from_dict(rows))
    assert pairs.tokens.tolist() == [[2, 4], [3, 2]]
    assert pairs.scored.tolist() == [[1, 3], [2, 1]]
    assert pairs.in_micro_batch(packs=True).tolist() == [6, 5]
    assert pairs.in_micro_batch(packs=False).tolist() == [8, 6]
    shapes = shapes_of(pairs, settings(per_device_train_batch_size=2, gradient_accumulation_steps=1), on_gpu=False)
    assert (shapes.largest[0].rows, shapes.largest[0].tokens, shapes.largest[0].scored) == (4, 12, 7)
    assert shapes.tokens == 11 * shapes.steps


def test_whole_steps_are_divided_by_tokens(lengths):
    shapes = shapes_of(lengths, settings(), on_gpu=False)
    assert shapes.steps == 2
    assert shapes.tokens == 2 * 360
    assert shapes.per_step >= 4  # 360 tokens, at most 100 at a time
    assert max(batch.tokens for batch in shapes.largest) <= 100 + 3
    assert {batch.loss for batch in shapes.largest} == {"logits"}


def test_processes_share_a_step(lengths):
    alone = shapes_of(lengths, settings(), on_gpu=False)
    shared = shapes_of(lengths, settings(per_device_train_batch_size=2), on_gpu=False, processes=2)
    assert (shared.steps, shared.tokens) == (alone.steps, alone.tokens)
    assert shared.per_step < alone.per_step
    assert steps_of(settings(), 64, processes=2) == 8


def test_padding_counts(lengths):
    shapes = shapes_of(lengths, settings(batching="padded", gradient_accumulation_steps=1), on_gpu=True)
    largest = max(shapes.largest, key=lambda batch: batch.tokens)
    assert largest.rows == 4
    assert largest.row_tokens == 80
    assert largest.loss == "fused"


def test_max_steps_decides(lengths):
    assert shapes_of(lengths, settings(max_steps=7), on_gpu=False).steps == 7
