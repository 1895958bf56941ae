"""Keep encoded batches on disk until it is known which rows are held out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Self

from mlflow_finetune_plugin.data.tokens.batch_encoder import Beside, Conversations, Groups, from_frame
from mlflow_finetune_plugin.data.tokens.batches import EncodedBatch


class SpooledBatch:
    """An encoded batch and its conversations, which are decoded on first use."""

    def __init__(self, frame: bytes, encoded: EncodedBatch) -> None:
        self._frame, self.encoded = frame, encoded
        self._conversations: Conversations | None = None
        self._groups: Groups = []
        self._beside: list[Beside] = []

    @property
    def conversations(self) -> Conversations:
        if self._conversations is None:
            _, self._conversations, self._groups, self._beside = from_frame(self._frame)
        return self._conversations

    @property
    def beside(self) -> list[Beside]:
        """What the rows hold beside their conversations; empty for rows of answers."""
        return self._beside if self.conversations else []

    def group(self, row: int) -> str | None:
        """Return the group of a row; None where rows have none."""
        return self._groups[row] if self.conversations and self._groups else None


class Spool:
    """A temporary file of batches. A context manager that removes the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        self._stream = self._path.open("w+b")
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._path.unlink()

    def add(self, frame: bytes, encoded: EncodedBatch) -> None:
        for part in (frame, encoded.to_bytes()):
            self._stream.write(len(part).to_bytes(8, "little"))
            self._stream.write(part)

    def position(self) -> int:
        return self._stream.tell()

    def batches(self, start: int, end: int) -> Iterator[SpooledBatch]:
        """Yield the batches between two positions, in order."""
        self._stream.seek(start)
        while self._stream.tell() < end:
            frame = self._read()
            yield SpooledBatch(frame, EncodedBatch.from_bytes(self._read()))

    def _read(self) -> bytes:
        return self._stream.read(int.from_bytes(self._stream.read(8), "little"))
