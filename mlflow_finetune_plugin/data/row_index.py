"""Hashes of every row of one side, on disk: what duplicates, contradictions and leakage are found with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_finetune_plugin.data.conversations import is_document
from mlflow_finetune_plugin.types import Message

_RECORD = np.dtype(
    [("row", "<u8"), ("prompt", "<u8"), ("answer", "<u8"), ("line", "<u4"), ("file", "<u2"), ("example", "<u4")]
)
_BUFFERED_ROWS = 10_000
_ALL_BITS = 2**64 - 1


class RowIndex:
    """``row`` is exact, ``prompt`` and ``answer`` are without case and blanks; ``example`` is the row's first in the token file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[tuple[int, ...]] = []
        self.size = 0
        path.unlink(missing_ok=True)

    def note(
        self, messages: Sequence[Message], row_hash: int, *, line: int = 0, file: int = 0, example: int = 0
    ) -> None:
        answer = _normalised_hash(messages[-1]["content"])
        prompt = answer if is_document(messages) else hash_prompt(messages[:-1])
        self._rows.append((row_hash, prompt, answer, line, file, example))
        self.size += 1
        if len(self._rows) >= _BUFFERED_ROWS:
            self._write()

    def records(self) -> np.ndarray:
        """All rows in order, memory-mapped; dtype with the fields row, prompt, answer, line, file and example."""
        self._write()
        if not self.size:
            return np.empty(0, dtype=_RECORD)
        return np.memmap(self._path, dtype=_RECORD, mode="r", shape=(self.size,))

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        if self._rows:
            with self._path.open("ab") as stream:
                stream.write(np.array(self._rows, dtype=_RECORD).tobytes())
        self._rows = []


def hash_prompt(messages: Sequence[Message]) -> int:
    """64 bits of a prompt without what a copy may differ in: case and blanks. Of this process only, like Python's hash."""
    if len(messages) == 1:
        return _normalised_hash(messages[0]["content"])
    return hash(tuple([(m["role"], _normalised_hash(m["content"])) for m in messages])) & _ALL_BITS


def _normalised_hash(text: str) -> int:
    return hash(" ".join(text.lower().split())) & _ALL_BITS


def normalised(records: np.ndarray) -> np.ndarray:
    """One hash per row of its prompt and answer without case and blanks, uint64."""
    mixed: Any = records["prompt"] * np.uint64(0x9E3779B97F4A7C15)
    return mixed ^ records["answer"]
