import numpy as np
import pytest

from mlflow_finetune_plugin.data.conversations.row_faults import RowFault
from mlflow_finetune_plugin.data.tokens.batches import EncodedBatch, TokenBatch, pack
from mlflow_finetune_plugin.data.tokens.renderer import Example

ROWS = [
    [Example([1, 2, 3], [0, 1, 1])],
    RowFault("r", "d"),
    [Example([4], [1]), Example([5, 6], [0, 1], True)],
    [Example([7, 8, 9, 10], [0, 0, 0, 1])],
]


@pytest.fixture
def batch():
    tokens, counts, faults = pack(ROWS)
    hashes = np.arange(4, dtype=np.uint64)
    return EncodedBatch(np.arange(4), *[hashes] * 7, counts, tokens, faults, [])


def rows_of(batch):
    return [batch.examples(row) for row in range(len(batch))]


def test_examples_come_out_as_they_went_in(batch):
    assert rows_of(batch) == [ROWS[0], [], ROWS[2], ROWS[3]]
    assert batch.faults == [(1, "r", "d")]
    assert batch.longest.tolist() == [3, 0, 2, 4]
    assert rows_of(EncodedBatch.from_bytes(batch.to_bytes())) == rows_of(batch)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {0: []},
        {3: [Example([7], [1])]},
        {0: [Example([1], [1])], 2: [], 3: [Example([7], [1]), Example([8, 9], [0, 1])]},
        {0: [], 2: [], 3: []},
    ],
)
def test_some_rows_get_other_examples(batch, changed):
    before = rows_of(batch)
    example = batch.with_examples(changed)
    assert rows_of(example) == [list(changed.get(row, before[row])) for row in range(4)]
    assert rows_of(batch) == before


@pytest.mark.parametrize("numbers", [[], [0, 1, 2, 3], [3, 1, 1], [2], [0, 1, 2]])
def test_examples_are_taken_in_any_order_and_again(batch, numbers):
    every = [example for row in rows_of(batch) for example in row]
    taken = batch.tokens.take(np.array(numbers, dtype=np.int64))
    assert [taken.example(i) for i in range(len(taken))] == [every[number] for number in numbers]


def test_no_example_at_all():
    empty = TokenBatch.of([])
    assert len(empty) == 0
    assert len(empty.take(np.array([], dtype=np.int64))) == 0
