"""Count the columns that a layout does not use, and find those that look like a part of the task.

A model that is trained without a column which its prompts refer to learns to guess. So such a column stops a run until
``data.ignore`` names it or ``data.prompt_template`` writes it into the prompt.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.evaluation.results import Message

_TASK_NAMES = frozenset(
    (
        *("context", "contexts", "input", "inputs", "question", "instruction", "passage", "premise", "hypothesis"),
        *("choices", "options", "schema", "history", "system", "system_prompt", "sentence1", "sentence2"),
    )
)
"""Columns that are a part of the prompt wherever they occur, short or long."""
_DESCRIPTIONS = frozenset(
    (
        *(
            "id",
            "idx",
            "uuid",
            "index",
            "url",
            "link",
            "source",
            "timestamp",
            "date",
            "created_at",
            "title",
            "author",
            "name",
        ),
        *(
            "meta",
            "metadata",
            "lang",
            "language",
            "license",
            "split",
            "model",
            "file",
            "filename",
            "path",
            "comment",
            "notes",
        ),
        *("rejected", "chosen"),
    )
)
"""Columns that describe a row, or that are an answer which the layout leaves out on purpose."""
_SAMPLED_ROWS = 500
_LONG_CHARS = 20
_MOST = 0.9
_EXAMPLE_CHARS = 80


@dataclass
class _Column:
    """What is known of one unused column. The sample leaves out values that repeat the conversation."""

    rows: int = 0
    sampled: int = 0
    chars: int = 0
    phrases: int = 0
    values: set[int] = field(default_factory=set)
    example: str = ""


class UnusedColumns:
    """The columns of a file that its layout does not use, with the number of rows that have a value in them."""

    def __init__(self, used: Collection[str], prompts: Sequence[str] = ()) -> None:
        """Start to count.

        Args:
            used: The columns that the layout uses or the user ignores.
            prompts: The columns of which the prompt consists; empty where a conversation holds it.
        """
        self._used, self._prompts = frozenset(used), tuple(prompts)
        self._columns: dict[str, _Column] = {}
        self._rows = 0

    @property
    def counts(self) -> Counter[str]:
        """The number of rows that have a value, by column, most frequent first."""
        return Counter({name: column.rows for name, column in self._columns.items()})

    def add(self, row: Mapping[str, Any], conversations: Sequence[Sequence[Message]]) -> None:
        """Count the unused columns of a row that became these conversations."""
        self._rows += 1
        names = row.keys() - self._used
        if not names:
            return
        for name in names:
            value = row[name]
            if value is None or value in ("", [], {}):
                continue
            column = self._columns.setdefault(str(name), _Column())
            column.rows += 1
            if self._rows <= _SAMPLED_ROWS:
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
                if text.strip() and not _repeats(text, conversations):
                    _sample(column, text, is_text=not isinstance(value, int | float))

    def check(self) -> None:
        """Raise DataError for a column that looks like a part of the task."""
        for name, column in sorted(self._columns.items()):
            if not self._is_of_task(name, column):
                continue
            example = column.example[:_EXAMPLE_CHARS] + ("..." if len(column.example) > _EXAMPLE_CHARS else "")
            raise DataError(
                f"the column {name!r} is not used, and looks like a part of the task: {column.rows:,} of {self._rows:,} rows "
                f"have a value in it, for example {example!r}; fix: data.ignore: [{name}] (-P data.ignore={shlex.quote(name)}) "
                f"trains without it{self._template_fix(name)}"
            )

    def _template_fix(self, name: str) -> str:
        if not self._prompts:
            return ", or write it into the turns"
        names = (*self._prompts, name)
        template = "\\n\\n".join(f"{{{{ {n} }}}}" if n.isidentifier() else f"{{{{ row[{n!r}] }}}}" for n in names)
        return f', or data.prompt_template: "{template}" writes it into the prompt'

    def _is_of_task(self, name: str, column: _Column) -> bool:
        lowered = name.lower()
        if not column.sampled or lowered in _DESCRIPTIONS or lowered.endswith(("_id", "_url", "_at", "rejected")):
            return False
        if lowered in _TASK_NAMES:
            return True
        return (
            column.sampled > 1
            and column.sampled >= min(self._rows, _SAMPLED_ROWS) / 2
            and column.chars >= _LONG_CHARS * column.sampled
            and column.phrases >= _MOST * column.sampled
            and len(column.values) >= _MOST * column.sampled
        )


def _sample(column: _Column, text: str, *, is_text: bool) -> None:
    column.sampled += 1
    column.chars += len(text)
    # Ids, addresses and numbers are long and different in each row too, but they are no phrases.
    column.phrases += is_text and (
        " " in text.strip() or (len(text) >= _LONG_CHARS and not text[:_LONG_CHARS].isascii())
    )
    column.values.add(hash(text))
    column.example = column.example or text


def _repeats(text: str, conversations: Sequence[Sequence[Message]]) -> bool:
    """Return whether a text is a part of the conversation, or a copy of the whole of it."""
    for messages in conversations:
        contents = [message["content"] for message in messages]
        # Layouts join columns with a blank line, and a copy may have other words between them.
        pieces = [piece.strip() for content in contents for piece in content.split("\n\n")]
        if any(text.strip() in content for content in contents) or all(piece in text for piece in pieces):
            return True
    return False
