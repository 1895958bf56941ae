"""Token ids and labels in an Arrow stream file, written in batches, with a digest over all of them."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Self

import datasets
import numpy as np
import pyarrow as pa

from mlflow_finetune_plugin.data.rendering import Example
from mlflow_finetune_plugin.data.report import TokenReport, token_report
from mlflow_finetune_plugin.data.row_index import RowIndex

IGNORED_LABEL = -100
"""The label that torch's cross entropy, and so every trainer, leaves out."""

_DIGEST_CHARS = 36  # the longest that MLflow takes
_SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32())), ("task", pa.string())])


class TokenFile:
    """One side, train or eval, while it is written: a context that puts the file in place when nothing failed."""

    def __init__(self, path: Path, template_digest: str) -> None:
        self.path = path
        self._part = path.with_name(path.name + ".part")  # an earlier file may still be memory-mapped
        self._sha = hashlib.sha256(template_digest.encode())
        self._lengths: Counter[int] = Counter()
        self._learnt = np.zeros(0, dtype=np.int64)  # token id -> how often it carries loss
        self.examples = 0
        self.index = RowIndex(path.with_name(path.stem + ".rows"))

    def __enter__(self) -> Self:
        self._sink = pa.OSFile(str(self._part), "wb")
        self._writer = pa.ipc.new_stream(self._sink, _SCHEMA)
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

    def write(self, examples: Sequence[Example], tasks: Sequence[str]) -> None:
        if not examples:
            return
        self.examples += len(examples)
        masks = [bytes(example.loss_mask) for example in examples]
        lengths = [len(mask) for mask in masks]
        self._lengths.update(lengths)
        ends = np.cumsum([0, *lengths], dtype=np.int32)
        flat_ids = np.fromiter(
            chain.from_iterable([example.input_ids for example in examples]), np.int32, int(ends[-1])
        )
        flat_mask = np.frombuffer(b"".join(masks), dtype=np.uint8)
        self._sha.update(b"".join(_digested(flat_ids.astype("<i4", copy=False).tobytes(), masks)))
        self._count_learnt(flat_ids[flat_mask != 0])
        offsets = pa.array(ends)
        labels = np.where(flat_mask, flat_ids, np.int32(IGNORED_LABEL))
        columns = [
            pa.ListArray.from_arrays(offsets, pa.array(flat_ids)),
            pa.ListArray.from_arrays(offsets, pa.array(labels)),
            pa.array(tasks, type=pa.string()),
        ]
        self._writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))

    def dataset(self) -> datasets.Dataset:
        """The written file, memory-mapped."""
        return datasets.Dataset.from_file(str(self.path))

    def digest(self) -> str:
        """sha256 over the template and, in order, the ids and loss masks of all examples."""
        return self._sha.hexdigest()[:_DIGEST_CHARS]

    def token_report(self) -> TokenReport:
        return token_report(self._lengths, int(self._learnt.sum()))

    def learnt_tokens(self) -> np.ndarray:
        """How often each token id carries loss, (highest id + 1,)."""
        return self._learnt

    def _count_learnt(self, ids: np.ndarray) -> None:
        counts = np.bincount(ids, minlength=len(self._learnt))
        counts[: len(self._learnt)] += self._learnt
        self._learnt = counts


def _digested(ids: bytes, masks: Sequence[bytes]) -> Iterator[bytes]:
    """Of each example its length (4 bytes), its ids (4 bytes each) and its mask (1 byte each), little endian."""
    start = 0
    for mask in masks:
        end = start + 4 * len(mask)
        yield len(mask).to_bytes(4, "little")
        yield ids[start:end]
        yield mask
        start = end
