"""The first of two steps: data files to checked conversations on disk, every row that is none counted with its line."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlflow_finetune_plugin.data.conversations import conversations, instructed
from mlflow_finetune_plugin.data.layouts import TEXT, Layout, check_learnable, detect_layout
from mlflow_finetune_plugin.data.locations import is_remote, local_copy, shown
from mlflow_finetune_plugin.data.row_faults import RowFault
from mlflow_finetune_plugin.data.sources import peek, read_rows
from mlflow_finetune_plugin.data.split import hash_row, hash_text
from mlflow_finetune_plugin.data.spool import Spool, SpooledRow
from mlflow_finetune_plugin.data.tally import Tally
from mlflow_finetune_plugin.errors import DataError


@dataclass(frozen=True)
class DataFile:
    """A file and the task its rows belong to; ``weight`` 2 uses each row twice, 0.5 a seeded half of the rows.

    ``path`` may also name a data set of the hub or an MLflow artifact (locations.py). ``instruction`` is written before the
    first user turn of each row, with a blank line between, as alpaca's is.
    """

    path: Path
    task: str
    weight: float = 1.0
    instruction: str | None = None

    @property
    def shown(self) -> str:
        """What reports call it: what was asked for, never where a copy of it lies."""
        return shown(str(self.path))


@dataclass(frozen=True)
class ReadFile:
    """A file whose rows lie in the spool between two positions."""

    file: DataFile
    tally: Tally
    start: int
    end: int


class Reader:
    """Reads files one after the other and collects the hashes that the split is made from."""

    def __init__(self, spool: Spool, columns: Mapping[str, str], layout: str, seed: int, folder: Path) -> None:
        self._spool, self._columns, self._layout, self._seed, self._folder = spool, columns, layout, seed, folder
        self.row_hashes = array("Q")
        self.place_hashes = array("Q")

    def read(self, file: DataFile, role: Literal["train", "eval"]) -> ReadFile:
        """Raises DataError for a file that cannot be read or understood, by the name that was asked for."""
        local = local_copy(str(file.path), self._folder)
        try:
            return self._read(file, local, role)
        except DataError as error:
            if local == file.path:
                raise
            raise DataError(str(error).replace(str(local), str(file.path))) from error

    def _read(self, file: DataFile, local: Path, role: Literal["train", "eval"]) -> ReadFile:
        layout = self._layout_of(file, local)
        tally = Tally(file.shown, file.task, file.weight, role, layout)
        start = self._spool.position()
        for line, row in read_rows(local):
            tally.rows_read += 1
            if role == "eval":
                self.place_hashes.append(hash_text(place(file, line), self._seed))
            try:
                self._spool_row(line, row, tally, file.instruction, role)
            except RowFault as fault:
                tally.conversations += 1
                tally.skip(line, fault.reason, fault.detail, row)
        self._spool.finish()
        return ReadFile(file, tally, start, self._spool.position())

    def _spool_row(self, line: int, row: Mapping[str, Any], tally: Tally, instruction: str | None, role: str) -> None:
        found = [instructed(conversation, instruction) for conversation in conversations(tally.layout, row)]
        row_hash = hash_row(found[0].messages, self._seed)
        if role == "train":
            self.row_hashes.append(row_hash)
        for number, conversation in enumerate(found):
            tally.conversations += 1
            tally.developer_turns += conversation.developer_turns
            messages = conversation.messages
            own_hash = hash_row(messages, self._seed) if number else row_hash
            chars = sum([len(message["content"]) for message in messages])
            self._spool.add(SpooledRow(line, messages, row_hash, own_hash), chars)

    def _layout_of(self, file: DataFile, local: Path) -> Layout:
        try:
            layout = detect_layout((row for _, row in peek(local)), self._columns, self._layout)
            check_learnable(layout)
            if file.instruction is not None and layout.name == TEXT:
                raise DataError("plain text has no turn to write an instruction before; fix: leave it out of data")
        except DataError as error:
            if str(local) in str(error):
                raise
            raise DataError(f"{file.path}: {error}") from error
        return layout


def place(file: DataFile, line: int) -> str:
    """What a seeded choice among rows is made from: where the row stands, not what it says."""
    name = str(file.path) if is_remote(str(file.path)) else file.path.name
    return f"{name} {file.task} {line}"
