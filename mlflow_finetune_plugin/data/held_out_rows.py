"""Make the held-out rows of the proof, and watch that no group of rows is on both sides."""

from __future__ import annotations

import numpy as np

from mlflow_finetune_plugin.data.conversations.chat_turns import unmarked
from mlflow_finetune_plugin.data.conversations.conversion import is_document
from mlflow_finetune_plugin.data.request import DataFile
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer, Example
from mlflow_finetune_plugin.data.tokens.spool import SpooledBatch
from mlflow_finetune_plugin.evaluation.results import EvalRow, Message


class GroupSides:
    """The groups of the rows on each side. ``column`` is None where rows have no groups."""

    def __init__(self, column: str | None) -> None:
        self._column = column
        self._trained: set[int] = set()
        self._held_out: dict[int, str] = {}

    def note(self, batch: SpooledBatch, held_out: np.ndarray, trained: np.ndarray) -> None:
        """Note the groups of these rows of a batch."""
        if self._column is None:
            return
        hashes = batch.encoded.group_hashes
        self._trained.update(np.unique(hashes[trained]).tolist())
        for row in held_out.tolist():
            self._held_out.setdefault(int(hashes[row]), str(batch.group(row)))

    def fault(self) -> str | None:
        """Return the fault of groups that are on both sides, which only files that the user divided can have."""
        both = [name for group, name in self._held_out.items() if group in self._trained]
        if not both:
            return None
        return (
            f"{len(both):,} groups ({self._column}) are in data.train and in data.eval, for example {both[0][:60]!r}; "
            "fix: remove their rows from one of the files, or let the run divide one file (data.eval: 0.1)"
        )

    def of_eval_files(self, held_out: object) -> str:
        """Return how many groups the held-out files have, as the end of a sentence; "" where the rows were split."""
        if self._column is None or not isinstance(held_out, tuple):
            return ""
        return f"; they are {len(self._held_out):,} groups ({self._column})"


def eval_row(
    line: int,
    messages: tuple[Message, ...],
    example: Example,
    file: DataFile,
    renderer: ChatRenderer,
    group: str | None,
) -> EvalRow:
    """Make a held-out row: the last assistant turn is the reference, the turns before it are the prompt.

    The reference of a turn with calls or reasoning is what the model has to write, because its content is not all of it.
    """
    start, end = example.last_turn()
    answer = messages[-1]
    is_text = answer.keys() <= {"role", "content"} or is_document(messages)
    return EvalRow(
        messages=tuple(unmarked(messages[:-1])),
        prompt_ids=tuple(example.input_ids[:start]),
        completion_ids=tuple(example.input_ids[start:end]),
        reference=answer["content"] if is_text else renderer.answer_text(example.input_ids[start:end]),
        task=file.task,
        source=file.report_name,
        line=line,
        answer=None if is_text else answer,
        group=group,
    )
