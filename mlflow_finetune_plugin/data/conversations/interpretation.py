"""Decide how the rows of one file are read: its layout, the columns that are ignored, and the template of its prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.data.columns.ratings import AnswerLists
from mlflow_finetune_plugin.data.columns.remainder import UnusedColumns
from mlflow_finetune_plugin.data.conversations.conversion import CHATS, Conversation, to_conversations
from mlflow_finetune_plugin.data.conversations.groups import check_group, group_of
from mlflow_finetune_plugin.data.conversations.layouts import (
    COMPOSED,
    JUDGED,
    LABEL,
    PREFERENCE,
    PROMPTS,
    RANKED,
    RATED,
    ROW_FORM_LAYOUTS,
    SHAREGPT,
    TEXT,
    Layout,
    composed_layout,
    detect_layout,
)
from mlflow_finetune_plugin.data.conversations.nested_columns import LIST_COLUMNS, LIST_PARTS, unpacked
from mlflow_finetune_plugin.data.conversations.pictures import (
    ALL_PICTURES,
    PICTURE_COLUMNS,
    ignored_columns,
    without_pictures,
)
from mlflow_finetune_plugin.data.conversations.prompt_formats import check_formats
from mlflow_finetune_plugin.data.conversations.ratings import (
    check_answered,
    check_classes,
    check_labels,
    check_ranked,
    check_single_answers,
)
from mlflow_finetune_plugin.data.conversations.row_faults import RowFault
from mlflow_finetune_plugin.data.conversations.row_forms.detection import form_layout
from mlflow_finetune_plugin.data.conversations.row_forms.pairs import pairs_of
from mlflow_finetune_plugin.data.conversations.row_forms.prompts import BEFORE_ANSWER, prompts_of
from mlflow_finetune_plugin.data.conversations.row_forms.rated import RatingCounts, rated_of
from mlflow_finetune_plugin.data.conversations.row_forms.refusals import wrong_layout
from mlflow_finetune_plugin.data.conversations.turns.fields import unread_fields, without_fields
from mlflow_finetune_plugin.data.conversations.turns.tags import with_usual_names
from mlflow_finetune_plugin.data.conversations.turns.tool_calls import TOOL_COLUMNS
from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.images.turns import pictures_of
from mlflow_finetune_plugin.methods import RowForm

if TYPE_CHECKING:
    from mlflow_finetune_plugin.data.conversations.prompt_template import PromptTemplate


_READERS: dict[RowForm, Callable[[Layout, Mapping[str, Any]], list[Conversation]]] = {
    "answers": to_conversations,
    "pairs": pairs_of,
    "rated": rated_of,
    "prompts": prompts_of,
}
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
        form: What the objective needs each row to hold.
        tags: The names of the fields and roles of ShareGPT's turns, where they have others (see ``turn_tags.py``).
    """

    layout: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    prompt_template: str | None = None
    group: str | None = None
    form: RowForm = "answers"
    tags: Mapping[str, str] = field(default_factory=dict)


class Interpretation:
    """How the rows of one file become conversations. ``unused`` counts the columns that no conversation holds."""

    def __init__(self, layout: Layout, settings: ColumnSettings, template: PromptTemplate | None) -> None:
        self.layout, self._form = layout, settings.form
        self._ignore, self._template, self._group = _ignored(settings), template, settings.group
        self._chats = _turn_columns(layout, settings.form)
        self._lists, self._tags = _lists(settings), settings.tags
        columns = template.columns if template is not None else frozenset[str]()
        prompts = sorted(columns) or [layout.columns[part] for part in _PROMPT_PARTS if part in layout.columns]
        tools = TOOL_COLUMNS if layout.name in CHATS else ()
        is_guessed = not settings.columns and settings.layout == "auto"
        self.unused = UnusedColumns(
            {*layout.columns.values(), *columns, *tools, *self._ignore, COMPOSED, settings.group or COMPOSED},
            prompts,
            has_answers=layout.name not in (LABEL, TEXT),
            is_guessed=is_guessed,
            describes_answers=settings.form != "answers",
        )
        self._answers = AnswerLists(layout.columns["output"]) if layout.name == "alpaca" and is_guessed else None
        self._ratings = RatingCounts()

    def conversations(self, row: Mapping[str, Any]) -> list[Conversation]:
        """Return the conversations of a row, and count its unused columns.

        Raises:
            RowFault: the row cannot be used for training.
        """
        group = None if self._group is None else group_of(row, self._group)
        row = _without(unpacked(_without(row, self._ignore), self._lists), self._ignore)
        if self._answers is not None:
            self._answers.add(row)
        try:
            if self._tags:
                row = with_usual_names(row, self.layout.columns.values(), self._tags)
            composed = self._composed(row)
            conversations = _READERS[self._form](self.layout, composed)
        except RowFault:
            self._count_unused(row, ())
            raise
        self.unused.add_fields({name for column in self._chats for name in unread_fields(row.get(column))})
        self._count_unused(row, conversations)
        self._ratings.add(conversations)
        return [replace(conversation, group=group) for conversation in conversations] if group else conversations

    def _count_unused(self, row: Mapping[str, Any], conversations: Sequence[Conversation]) -> None:
        if self._form == "prompts":  # every column that is not of the prompt reaches the reward
            return
        sides = [turns for read in conversations for turns in (read.messages, read.rejected) if turns]
        if any(pictures_of(turns) for turns in sides):
            row = {name: value for name, value in row.items() if name not in PICTURE_COLUMNS}
        self.unused.add(row, sides)

    def check(self) -> None:
        """Raise DataError for what the rows of a whole file are not: rated alike, or all that ``check_columns`` finds."""
        self.check_columns()
        self._ratings.check()

    def check_columns(self) -> None:
        """Raise DataError for what the rows so far hold beside what the model learns: ratings, ranks, or a part of the task."""
        if self._answers is not None:
            self._answers.check()
        self.unused.check()

    def _composed(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the row with its composed prompt. What only the prompt holds has no other meaning then."""
        if self._template is None:
            return row
        if self._form == "prompts":  # a reward may need the values from which the prompt was composed
            return self._template.compose(row)
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
    rows = [unpacked(_without(row, _ignored(settings)), lists) for row in rows]
    template = None if settings.prompt_template is None else _template(settings.prompt_template, rows)
    layout = _layout(rows, settings, template)
    check_classes(layout, rows)
    if settings.tags and layout.name != SHAREGPT and layout.name not in ROW_FORM_LAYOUTS:
        raise DataError(f"tags name the turns of ShareGPT, and the layout is {layout.name}; fix: set layout: sharegpt")
    # The first rows have their own count, so that reading the whole file later counts each row once.
    first = Interpretation(layout, settings, template)
    for row in rows:
        try:
            first.conversations(row)
        except RowFault:
            continue  # the report counts it
    first.check_columns()
    return Interpretation(layout, settings, template)


def _template(text: str, rows: Sequence[Mapping[str, Any]]) -> PromptTemplate:
    # Jinja is imported on first use, because submitting a run reads the first rows too.
    from mlflow_finetune_plugin.data.conversations.prompt_template import PromptTemplate

    template = PromptTemplate(text)
    template.check(list(dict.fromkeys(str(name) for row in rows for name in row)))
    return template


def _layout(rows: Sequence[Mapping[str, Any]], settings: ColumnSettings, template: PromptTemplate | None) -> Layout:
    composed = None if template is None else template.columns
    if settings.form != "answers":
        return form_layout(rows, settings.form, settings.columns, settings.layout, composed)
    if settings.layout in (RANKED, JUDGED, RATED, PROMPTS):
        raise wrong_layout(settings.layout, "answers")
    if composed is not None:
        return composed_layout(rows, settings.columns, settings.layout, composed)
    is_guessed = not settings.columns and settings.layout == "auto"
    if is_guessed:
        check_single_answers(rows)
        check_answered(rows)
        check_labels(rows)
    layout = detect_layout(rows, settings.columns, settings.layout)
    if is_guessed or layout.name == PREFERENCE:
        check_ranked(layout, rows)
    if is_guessed:
        check_formats(layout, rows)
    return layout


def _turn_columns(layout: Layout, form: RowForm) -> tuple[str, ...]:
    """Return the columns whose turns are read. The others of a file of prompts reach the reward as they are."""
    if layout.name not in CHATS:
        return ()
    if form == "prompts":
        return tuple(layout.columns[part] for part in BEFORE_ANSWER if part in layout.columns)
    return tuple(layout.columns.values())


def _without(row: Mapping[str, Any], ignore: frozenset[str]) -> Mapping[str, Any]:
    if not ignore:
        return row
    row = without_fields({name: value for name, value in row.items() if name not in ignore}, ignore)
    return without_pictures(row) if ALL_PICTURES in ignore else row


def _ignored(settings: ColumnSettings) -> frozenset[str]:
    return ignored_columns(settings.ignore, settings.columns.values())


def _lists(settings: ColumnSettings) -> frozenset[str]:
    """Return the columns that hold a list or an object, also where a file has them as JSON text."""
    named = {settings.columns[part] for part in LIST_PARTS if part in settings.columns}
    return LIST_COLUMNS | named


def _check_ignored(settings: ColumnSettings) -> None:
    both = sorted(set(settings.ignore) & set(settings.columns.values()))
    if both:
        raise DataError(f"data.ignore: {both[0]!r} is also in data.columns; fix: remove it from one of them")


def readable_form(rows: Sequence[Mapping[str, Any]], settings: ColumnSettings, forms: Sequence[RowForm]) -> RowForm:
    """Return the first of these forms in which a file can be read, from its first rows.

    Raises:
        DataError: it can be read in none of them; the error is that of the first form.
    """
    errors: list[DataError] = []
    for form in forms:
        try:
            interpret(rows, replace(settings, form=form))
            return form
        except DataError as error:
            errors.append(error)
    raise errors[0]
