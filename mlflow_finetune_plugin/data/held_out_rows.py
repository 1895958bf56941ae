"""Make the held-out rows of the proof, and watch that no group of rows is on both sides."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np

from mlflow_finetune_plugin.data.conversations.conversion import is_document
from mlflow_finetune_plugin.data.conversations.turns.chat import unmarked
from mlflow_finetune_plugin.data.request import DataFile
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer, Example
from mlflow_finetune_plugin.data.tokens.spool import SpooledBatch
from mlflow_finetune_plugin.evaluation.results import EvalRow, Message
from mlflow_finetune_plugin.images.prompts import PicturePrompt
from mlflow_finetune_plugin.methods import RowForm


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


def eval_rows(
    batch: SpooledBatch, row: int, examples: list[Example], file: DataFile, renderer: ChatRenderer, form: RowForm
) -> list[EvalRow]:
    """Make the held-out rows of one row of a batch: one for each piece of a document, none for a bad answer, one for others.

    Args:
        batch: The batch.
        row: The position of the row in it.
        examples: The row's examples in full length.
        file: The row's data file.
        renderer: Rendered the examples.
        form: The form of the rows.
    """
    line, messages, group = int(batch.encoded.lines[row]), batch.conversations[row], batch.group(row)
    if form == "answers":
        pieces = examples if is_document(messages) else examples[-1:]
        return [eval_row(line, messages, piece, file, renderer, group) for piece in pieces]
    rejected, is_good, _, fields = batch.beside[row]
    if form == "prompts":
        return [_prompt_row(line, messages, examples[0], file, fields, renderer, group)]
    held_out = eval_row(line, messages, examples[0], file, renderer, group)
    if form == "rated":  # a bad answer cannot be a reference
        return [replace(held_out, is_good=True)] if is_good else []
    start, end = examples[1].last_turn()
    return [replace(held_out, rejected=rejected[-1]["content"], rejected_ids=tuple(examples[1].input_ids[start:end]))]


def columns_beside(batch: SpooledBatch, row: int, form: RowForm) -> tuple[object, ...]:
    """Return the values of the columns that rows of this form have beside token ids, labels and task."""
    if form == "answers":
        return ()
    _, is_good, margin, fields = batch.beside[row]
    if form == "pairs":
        return (margin,)
    return (is_good,) if form == "rated" else (json.dumps(batch.conversations[row], ensure_ascii=False), fields)


def _prompt_row(
    line: int,
    messages: tuple[Message, ...],
    prompt: Example,
    file: DataFile,
    fields: str,
    renderer: ChatRenderer,
    group: str | None,
) -> EvalRow:
    """Make a held-out prompt. Where its fields have no reference, the row has an empty one, which no metric may read."""
    reference = json.loads(fields or "{}").get("reference")
    text = "" if reference is None else str(reference)
    ids = renderer.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return EvalRow(
        messages=tuple(unmarked(messages)),
        prompt_ids=tuple(prompt.input_ids),
        completion_ids=(*ids, renderer.end_of_turn_token_id),
        reference=text,
        task=file.task,
        source=file.report_name,
        line=line,
        group=group,
        fields=fields,
    )


def prompt_of(ids: list[int], pictures: tuple[str, ...], renderer: ChatRenderer) -> tuple[int, ...]:
    """Return a prompt's tokens, with its pictures where it has some."""
    if not pictures or renderer.pictures is None:
        return tuple(ids)
    return PicturePrompt(ids, pictures, renderer.pictures, renderer.picture_store)


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
        prompt_ids=prompt_of(example.input_ids[:start], example.pictures, renderer),
        completion_ids=tuple(example.input_ids[start:end]),
        reference=answer["content"] if is_text else renderer.answer_text(example.input_ids[start:end]),
        task=file.task,
        source=file.report_name,
        line=line,
        answer=None if is_text else answer,
        group=group,
    )
