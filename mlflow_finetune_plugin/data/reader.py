"""Step one of the preparation: read files, encode their conversations to disk, and count every row that is left out."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from mlflow_finetune_plugin.data.conversations.conversion import Conversation, instructed
from mlflow_finetune_plugin.data.conversations.interpretation import ColumnSettings, Interpretation, interpret
from mlflow_finetune_plugin.data.conversations.layouts import TEXT
from mlflow_finetune_plugin.data.conversations.row_faults import RowFault
from mlflow_finetune_plugin.data.conversations.split import hash_text
from mlflow_finetune_plugin.data.conversations.turns.chat import whole_text
from mlflow_finetune_plugin.data.report.tally import RowTally
from mlflow_finetune_plugin.data.request import DataFile
from mlflow_finetune_plugin.data.row_pictures import RowPictures
from mlflow_finetune_plugin.data.sources.locations import is_remote, local_copy
from mlflow_finetune_plugin.data.sources.rows import peek, read_rows
from mlflow_finetune_plugin.data.tokens.batch_encoder import (
    BatchEncoder,
    Beside,
    Conversations,
    is_first_of_line,
    to_frame,
)
from mlflow_finetune_plugin.data.tokens.batches import EncodedBatch
from mlflow_finetune_plugin.data.tokens.encoding_pool import EncodingPool
from mlflow_finetune_plugin.data.tokens.spool import Spool
from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.methods import RowForm

BATCH_ROWS = 1000
_BATCH_CHARS = 2_000_000


@dataclass(frozen=True)
class ReadFile:
    """A file that was read: its rows are in the spool from ``start`` to ``end``."""

    file: DataFile
    tally: RowTally
    start: int
    end: int


class Reader:
    """Reads files one after the other and collects the hashes from which the split is chosen. A context manager."""

    def __init__(
        self,
        spool: Spool,
        encoder: BatchEncoder,
        columns: ColumnSettings,
        seed: int,
        folder: Path,
        on_progress: Callable[[int], None],
        pictures: RowPictures,
    ) -> None:
        self._spool, self._columns, self._seed, self._folder = spool, columns, seed, folder
        self._pictures = pictures
        self._pool = EncodingPool(encoder, self._collect)
        self._batch = _Batch()
        self._role: Literal["train", "eval"] = "train"
        self._rows_done, self._on_progress = 0, on_progress
        self.row_hashes = array("Q")
        self.prompt_hashes = array("Q")
        self.group_hashes = array("Q")
        self.place_hashes = array("Q")

    def __enter__(self) -> Self:
        self._pool.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.__exit__(kind, error, trace)

    def read(self, file: DataFile, role: Literal["train", "eval"]) -> ReadFile:
        """Read one file into the spool.

        Raises:
            DataError: the file cannot be read or its layout is unknown; the message has the configured name.
        """
        local = file.copy or local_copy(str(file.path), self._folder)
        try:
            return self._read(file, local, role)
        except DataError as error:
            if local == file.path:
                raise
            raise DataError(str(error).replace(str(local), str(file.path))) from error

    def _read(self, file: DataFile, local: Path, role: Literal["train", "eval"]) -> ReadFile:
        reading = self._interpretation(file, local, is_beside_train=role == "eval" and bool(self.row_hashes))
        tally = RowTally(file.report_name, file.task, file.weight, role, reading.layout)
        start, self._role = self._spool.position(), role
        # Votes are of clients, who must not name files.
        pictures_at = None if file.copy is not None else local if local.is_dir() else local.parent
        for line, row in read_rows(local, tally.source_notes.append):
            tally.rows_read += 1
            if role == "eval":
                self.place_hashes.append(hash_text(row_key(file, line), self._seed))
            try:
                conversations = self._pictures.stored(reading.conversations(row), pictures_at)
                self._add(line, conversations, tally, file.instruction)
            except RowFault as fault:
                tally.conversations += 1
                tally.skip(line, fault.reason, fault.detail, row)
        self._submit()
        self._pool.drain()
        with _named(file, local):
            reading.check()  # again, because the first rows may lack a column
        tally.unused_columns, tally.scores = reading.unused.counts, reading.unused.scores
        return ReadFile(file, tally, start, self._spool.position())

    def _add(self, line: int, read: list[Conversation], tally: RowTally, instruction: str | None) -> None:
        for conversation in [instructed(conversation, instruction) for conversation in read]:
            tally.conversations += 1
            tally.developer_turns += conversation.developer_turns
            tally.context_answers += conversation.context_answers
            tally.written_answers += conversation.is_written
            tally.reasoning_turns += conversation.reasoning_turns
            tally.thinking_turns += conversation.thinking_turns
            self._batch.add(line, conversation, self._columns.form)
        if self._batch.is_full():
            self._submit()

    def _submit(self) -> None:
        if self._batch.lines:
            batch = self._batch
            self._pool.submit(to_frame(batch.lines, batch.conversations, batch.groups, batch.beside))
            self._batch = _Batch()

    def _collect(self, frame: bytes, encoded: EncodedBatch) -> None:
        self._spool.add(frame, encoded)
        if self._role == "train":
            is_first = is_first_of_line(encoded.lines)
            self.row_hashes.frombytes(encoded.row_hashes[is_first].tobytes())
            self.prompt_hashes.frombytes(encoded.line_prompts[is_first].tobytes())
            if len(encoded.group_hashes):
                self.group_hashes.frombytes(encoded.group_hashes[is_first].tobytes())
        self._rows_done += len(encoded)
        self._on_progress(self._rows_done)

    def _interpretation(self, file: DataFile, local: Path, *, is_beside_train: bool) -> Interpretation:
        with _named(file, local):
            try:
                reading = interpret([row for _, row in peek(local)], file.settings(self._columns))
            except DataError as error:
                if self._columns.form == "answers" or not is_beside_train:
                    raise
                # The held-out rows of a recipe for answers, where only the training rows were replaced.
                raise DataError(f"{error}; or hold out a part of the training rows: -P data.eval=0.1") from error
            if file.instruction is not None and reading.layout.name == TEXT:
                raise DataError(
                    "an instruction needs conversations, and this file holds plain text; fix: remove instruction from data"
                )
        return reading


@contextmanager
def _named(file: DataFile, local: Path) -> Iterator[None]:
    """Put the file's name before an error that does not name it."""
    try:
        yield
    except DataError as error:
        if str(local) in str(error):
            raise
        raise DataError(f"{file.path}: {error}") from error


class _Batch:
    """Rows of one file that wait for encoding. The conversations of a line stay in one batch."""

    def __init__(self) -> None:
        self.lines: list[int] = []
        self.conversations: Conversations = []
        self.groups: list[str] = []
        self.beside: list[Beside] = []
        self._chars = 0

    def add(self, line: int, conversation: Conversation, form: RowForm) -> None:
        self.lines.append(line)
        self.conversations.append(conversation.messages)
        if conversation.group is not None:
            self.groups.append(conversation.group)
        if form != "answers":
            c = conversation
            self.beside.append((c.rejected, c.is_good, c.margin, c.fields))
        turns = (*conversation.messages, *conversation.rejected)
        self._chars += sum([len(whole_text(message)) for message in turns])

    def is_full(self) -> bool:
        return len(self.lines) >= BATCH_ROWS or self._chars >= _BATCH_CHARS


def row_key(file: DataFile, line: int) -> str:
    """Return the text from which a row's seeded hash is made. It names the row's position, not its content."""
    name = str(file.path) if is_remote(str(file.path)) else file.path.name
    return f"{name} {file.task} {line}"
