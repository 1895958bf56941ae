"""Rows that were read and checked, on disk until they are encoded: a file is parsed once, whatever its format."""

from __future__ import annotations

import marshal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

BATCH_ROWS = 1000
_BATCH_CHARS = 2_000_000


class SpooledRow(NamedTuple):
    """One conversation of a row. ``row_hash`` is that of the row's first conversation: a row stays on one side."""

    line: int
    messages: tuple[dict[str, str], ...]
    row_hash: int
    own_hash: int


class Spool:
    """One file's rows; a context that removes them from disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[SpooledRow] = []
        self._chars = 0

    def __enter__(self) -> Self:
        self._stream = self._path.open("w+b")
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._path.unlink()

    def add(self, row: SpooledRow, chars: int) -> None:
        self._rows.append(row)
        self._chars += chars
        if len(self._rows) >= BATCH_ROWS or self._chars >= _BATCH_CHARS:
            self.finish()

    def finish(self) -> None:
        """Write what is still held; also between two files, so that a batch is of one file."""
        if self._rows:
            frame = marshal.dumps([tuple(row) for row in self._rows], 2)  # version 2 looks for no shared objects
            self._stream.write(len(frame).to_bytes(8, "little") + frame)
        self._rows, self._chars = [], 0

    def position(self) -> int:
        return self._stream.tell()

    def batches(self, start: int, end: int) -> Iterator[list[SpooledRow]]:
        """What was written between two positions, in order, batch by batch."""
        self._stream.seek(start)
        while self._stream.tell() < end:
            size = int.from_bytes(self._stream.read(8), "little")
            batch: list[Any] = marshal.loads(self._stream.read(size))
            yield [SpooledRow(*row) for row in batch]
