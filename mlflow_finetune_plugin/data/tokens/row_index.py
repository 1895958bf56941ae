"""Store the hashes of every row of one side on disk, for the checks on duplicates, contradictions and leaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mlflow_finetune_plugin.data.tokens.batches import EncodedBatch

_RECORD = np.dtype(
    [("row", "<u8"), ("prompt", "<u8"), ("answer", "<u8"), ("line", "<u4"), ("file", "<u2"), ("example", "<u4")]
)


class RowIndex:
    """A file of hashes. ``row`` is exact, ``prompt`` and ``answer`` ignore case and whitespace, ``example`` is the row's first one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = 0
        path.unlink(missing_ok=True)

    def add(self, batch: EncodedBatch, rows: np.ndarray, *, file: int, examples: np.ndarray) -> None:
        """Append rows of a batch.

        Args:
            batch: The encoded conversations.
            rows: Which of them to append.
            file: The number of their data file.
            examples: The index of each row's first example in the token file.
        """
        records = np.empty(len(rows), dtype=_RECORD)
        records["row"] = batch.own_hashes[rows]
        records["prompt"] = batch.prompt_hashes[rows]
        records["answer"] = batch.answer_hashes[rows]
        records["line"], records["file"], records["example"] = batch.lines[rows], file, examples
        with self._path.open("ab") as stream:
            stream.write(records.tobytes())
        self.size += len(rows)

    def records(self) -> np.ndarray:
        """Return all rows in order, memory-mapped, with the fields row, prompt, answer, line, file and example."""
        if not self.size:
            return np.empty(0, dtype=_RECORD)
        return np.memmap(self._path, dtype=_RECORD, mode="r", shape=(self.size,))

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def normalised(records: np.ndarray) -> np.ndarray:
    """Return one hash per row that ignores case and whitespace in prompt and answer: uint64, (rows,)."""
    mixed: Any = records["prompt"] * np.uint64(0x9E3779B97F4A7C15)
    return mixed ^ records["answer"]
