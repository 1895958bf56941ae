"""Write token ids and labels to an Arrow stream file in batches, with a digest over all of them.

What a row of the file holds depends on the form of the rows. A pair is two examples, of which the second one, the worse answer,
goes into further columns.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import datasets
import numpy as np
import pyarrow as pa

from mlflow_finetune_plugin.data.tokens.batches import TokenBatch
from mlflow_finetune_plugin.data.tokens.row_index import RowIndex
from mlflow_finetune_plugin.data.tokens.token_report import TokenReport, token_report
from mlflow_finetune_plugin.methods import RowForm

IGNORED_LABEL = -100
"""The label that torch's cross entropy, and so every trainer, ignores."""

_DIGEST_CHARS = 36  # the longest digest that MLflow accepts
_IDS = pa.list_(pa.int32())
_PICTURES = pa.field("pictures", pa.list_(pa.string()))
_ANSWERS = [("input_ids", _IDS), ("labels", _IDS), ("task", pa.string())]
_SCHEMAS: dict[RowForm, pa.Schema] = {
    "answers": pa.schema(_ANSWERS),
    "pairs": pa.schema(
        [*_ANSWERS, ("rejected_ids", _IDS), ("rejected_labels", _IDS), ("margin", pa.float64())],
    ),
    "rated": pa.schema([*_ANSWERS, ("is_good", pa.bool_())]),
    "prompts": pa.schema([*_ANSWERS, ("messages", pa.string()), ("fields", pa.string())]),
}


class TokenFile:
    """Writes one side, train or eval. A context manager that renames the file into place unless an error occurred."""

    def __init__(self, path: Path, template_digest: str, form: RowForm = "answers", *, sees: bool = False) -> None:
        """``sees``: the rows have a column with the names of their pictures, which only rows of answers can have."""
        self.path = path
        self._schema = _SCHEMAS[form].append(_PICTURES) if sees else _SCHEMAS[form]
        self._sees = sees
        self._form: RowForm = form
        self._part = path.with_name(path.name + ".part")  # an earlier file may still be memory-mapped
        self._sha = hashlib.sha256(template_digest.encode())
        self._lengths: Counter[int] = Counter()
        self._loss_counts = np.zeros(0, dtype=np.int64)  # token id -> how often it carries loss
        self.examples = 0
        """The rows of the file; a row of the data may be several."""
        self.index = RowIndex(path.with_name(path.stem + ".rows"))

    def __enter__(self) -> Self:
        self._sink = pa.OSFile(str(self._part), "wb")
        self._writer = pa.ipc.new_stream(self._sink, self._schema)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._writer.close()
        self._sink.close()
        if kind is None:
            os.replace(self._part, self.path)
        else:
            self._part.unlink()
            self.index.remove()

    @property
    def rows(self) -> int:
        return self.index.size

    def write(self, batch: TokenBatch, task: str, further: Sequence[tuple[object, ...]] = ()) -> None:
        """Append examples.

        Args:
            batch: The examples; for pairs, better and worse answers by turns.
            task: The task of all of them.
            further: The values of the form's further columns, one tuple for each row of the file; empty for answers.
        """
        if not len(batch):
            return
        self._lengths.update(batch.lengths.tolist())
        self._sha.update(b"".join(_digested(batch)))
        if further:
            self._sha.update(json.dumps(further, ensure_ascii=False).encode())
        self._count_loss(batch.ids[batch.mask != 0])
        if batch.pictures:
            self._sha.update(json.dumps(batch.pictures).encode())
        schema, sides = self._schema, [batch]
        if self._form == "pairs":
            sides = [batch.take(np.arange(start, len(batch), 2)) for start in (0, 1)]
        rows = len(sides[0])
        self.examples += rows
        columns = [*_token_columns(sides[0]), pa.array([task] * rows, type=pa.string())]
        for side in sides[1:]:
            columns += _token_columns(side)
        for place, values in enumerate(zip(*further, strict=True)):
            columns.append(pa.array(values, type=schema.types[len(schema) - len(further[0]) + place]))
        if self._sees:
            names = [batch.pictures_of(number) for number in range(rows)]
            columns.append(pa.array(names, type=_PICTURES.type))
        self._writer.write_batch(pa.record_batch(columns, schema=schema))

    def dataset(self) -> datasets.Dataset:
        """Open the written file, memory-mapped."""
        return datasets.Dataset.from_file(str(self.path))

    def digest(self) -> str:
        """Return the sha256 over the template and the ids and loss masks of all examples in order."""
        return self._sha.hexdigest()[:_DIGEST_CHARS]

    def token_report(self) -> TokenReport:
        return token_report(self._lengths, int(self._loss_counts.sum()))

    def loss_counts(self) -> np.ndarray:
        """Return how often each token id carries loss: int64, (highest id + 1,)."""
        return self._loss_counts

    def _count_loss(self, ids: np.ndarray) -> None:
        counts = np.bincount(ids, minlength=len(self._loss_counts))
        counts[: len(self._loss_counts)] += self._loss_counts
        self._loss_counts = counts


def _token_columns(batch: TokenBatch) -> list[pa.Array]:
    """Return the columns of token ids and labels."""
    offsets = pa.array(batch.offsets.astype(np.int32))
    labels = np.where(batch.mask, batch.ids, np.int32(IGNORED_LABEL))
    return [pa.ListArray.from_arrays(offsets, pa.array(batch.ids)), pa.ListArray.from_arrays(offsets, pa.array(labels))]


def _digested(batch: TokenBatch) -> Iterator[bytes]:
    """Yield for each example its length (4 bytes), ids (4 bytes each) and mask (1 byte each), little endian."""
    ids, mask, start = batch.ids.astype("<i4", copy=False).tobytes(), batch.mask.tobytes(), 0
    for length in batch.lengths.tolist():
        end = start + length
        yield length.to_bytes(4, "little")
        yield ids[4 * start : 4 * end]
        yield mask[start:end]
        start = end
