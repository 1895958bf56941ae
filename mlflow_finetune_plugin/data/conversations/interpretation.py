"""Decide how the rows of one file are read: its layout, the columns that are ignored, and the template of its prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.data.columns.ratings import AnswerLists
from mlflow_finetune_plugin.data.columns.remainder import UnusedColumns
from mlflow_finetune_plugin.data.conversations.conversion import CHATS, Conversation, to_conversations
from mlflow_finetune_plugin.data.conversations.groups import check_group, group_of
from mlflow_finetune_plugin.data.conversations.layouts import (
    COMPOSED,
    LABEL,
    PREFERENCE,
    TEXT,
    Layout,
    composed_layout,
    detect_layout,
)
from mlflow_finetune_plugin.data.conversations.nested_columns import LIST_COLUMNS, LIST_PARTS, unpacked
from mlflow_finetune_plugin.data.conversations.ratings import (
    check_answered,
    check_classes,
    check_labels,
    check_ranked,
    check_single_answers,
)
from mlflow_finetune_plugin.data.conversations.row_faults import RowFault
from mlflow_finetune_plugin.data.conversations.tool_calls import TOOL_COLUMNS
from mlflow_finetune_plugin.errors import DataError

if TYPE_CHECKING:
    from mlflow_finetune_plugin.data.conversations.prompt_template import PromptTemplate


_PROMPT_PARTS = ("instruction", "input", "prompt", "text")
"""The parts of layouts that make the prompt. The prompts of other layouts are turns, which no template composes."""


@dataclass(frozen=True)
class ColumnSettings:
    """What the user says about the columns of a file.

    Attributes:
        layout: ``auto`` or a layout's name.
        columns: The column of each part of the layout; the others are guessed.
        ignore: Columns that are not a part of the task.
        prompt_template: Jinja text over the columns that gives the prompt; None means that the layout gives it.
        group: The column that names the group of a row; None means that rows are independent.
    """

    layout: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    prompt_template: str | None = None
    group: str | None = None


class Interpretation:
    """How the rows of one file become conversations. ``unused`` counts the columns that no conversation holds."""

    def __init__(self, layout: Layout, settings: ColumnSettings, template: PromptTemplate | None) -> None:
        self.layout = layout
        self._ignore, self._template, self._group = frozenset(settings.ignore), template, settings.group
        self._lists = _lists(settings)
        columns = template.columns if template is not None else frozenset[str]()
        prompts = sorted(columns) or [layout.columns[part] for part in _PROMPT_PARTS if part in layout.columns]
        tools = TOOL_COLUMNS if layout.name in CHATS else ()
        is_guessed = not settings.columns and settings.layout == "auto"
        self.unused = UnusedColumns(
            {*layout.columns.values(), *columns, *tools, *self._ignore, COMPOSED, settings.group or COMPOSED},
            prompts,
            has_answers=layout.name not in (LABEL, TEXT),
            is_guessed=is_guessed,
        )
        self._answers = AnswerLists(layout.columns["output"]) if layout.name == "alpaca" and is_guessed else None

    def conversations(self, row: Mapping[str, Any]) -> list[Conversation]:
        """Return the conversations of a row, and count its unused columns.

        Raises:
            RowFault: the row cannot be used for training.
        """
        group = None if self._group is None else group_of(row, self._group)
        row = unpacked(_without(row, self._ignore), self._lists)
        if self._answers is not None:
            self._answers.add(row)
        try:
            composed = self._composed(row)
            conversations = to_conversations(self.layout, composed)
        except RowFault:
            self.unused.add(row, ())
            raise
        self.unused.add(row, [conversation.messages for conversation in conversations])
        return [replace(conversation, group=group) for conversation in conversations] if group else conversations

    def check(self) -> None:
        """Raise DataError for what the rows so far hold beside what the model learns: ratings, ranks, or a part of the task."""
        if self._answers is not None:
            self._answers.check()
        self.unused.check()

    def _composed(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the row with its composed prompt. What only the prompt holds has no other meaning then."""
        if self._template is None:
            return row
        kept = {*self.layout.columns.values()} | (row.keys() - self._template.columns)
        return {name: value for name, value in self._template.compose(row).items() if name in kept}


def interpret(rows: Sequence[Mapping[str, Any]], settings: ColumnSettings) -> Interpretation:
    """Decide how a file is read, from its first rows.

    Raises:
        DataError: no layout fits or several do, the rows rate or rank answers, or a column that is not used looks like a part
            of the task.
    """
    _check_ignored(settings)
    if settings.group is not None:
        check_group(rows, settings.group)
    lists = _lists(settings)
    rows = [unpacked(_without(row, frozenset(settings.ignore)), lists) for row in rows]
    template = None
    if settings.prompt_template is not None:
        # Jinja is imported on first use, because submitting a run reads the first rows too.
        from mlflow_finetune_plugin.data.conversations.prompt_template import PromptTemplate

        template = PromptTemplate(settings.prompt_template)
        template.check(list(dict.fromkeys(str(name) for row in rows for name in row)))
        layout = composed_layout(rows, settings.columns, settings.layout, template.columns)
    else:
        is_guessed = not settings.columns and settings.layout == "auto"
        if is_guessed:
            check_single_answers(rows)
            check_answered(rows)
            check_labels(rows)
        layout = detect_layout(rows, settings.columns, settings.layout)
        if is_guessed or layout.name == PREFERENCE:
            check_ranked(layout, rows)
    check_classes(layout, rows)
    # The first rows have their own count, so that reading the whole file later counts each row once.
    first = Interpretation(layout, settings, template)
    for row in rows:
        try:
            first.conversations(row)
        except RowFault:
            continue  # the report counts it
    first.check()
    return Interpretation(layout, settings, template)


def _without(row: Mapping[str, Any], ignore: frozenset[str]) -> Mapping[str, Any]:
    return {name: value for name, value in row.items() if name not in ignore} if ignore else row


def _lists(settings: ColumnSettings) -> frozenset[str]:
    """Return the columns that hold a list or an object, also where a file has them as JSON text."""
    named = {settings.columns[part] for part in LIST_PARTS if part in settings.columns}
    return LIST_COLUMNS | named


def _check_ignored(settings: ColumnSettings) -> None:
    both = sorted(set(settings.ignore) & set(settings.columns.values()))
    if both:
        raise DataError(f"data.ignore: {both[0]!r} is also in data.columns; fix: remove it from one of them")
