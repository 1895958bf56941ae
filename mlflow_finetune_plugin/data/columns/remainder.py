"""Count the columns that a layout does not use, and find those that look like a part of the task or rate the answers.

A model that is trained without a column which its prompts refer to learns to guess. So such a column stops a run until
``data.ignore`` names it or ``data.prompt_template`` writes it into the prompt.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlflow_finetune_plugin.data.columns.ratings import (
    RATINGS,
    REMOVED,
    SCORES,
    VERDICTS,
    check_later_pairs,
    check_later_ratings,
    check_removed,
    check_split,
    check_verdicts,
    flag_of,
    may_be_split,
)
from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.evaluation.results import Message

_TASK_NAMES = frozenset(
    (
        *("context", "contexts", "input", "inputs", "question", "instruction", "passage", "premise", "hypothesis"),
        *("choices", "options", "schema", "history", "system", "system_prompt", "sentence1", "sentence2"),
        *("story", "document", "documents", "text", "paragraph", "code", "table", "facts", "evidence"),
        *("target_language", "target_lang", "examples", "few_shot", "demonstrations", "knowledge", "background"),
        *("persona", "personas", "prefix", "suffix"),
    )
)
"""Columns that are a part of the prompt wherever they occur, short or long, also where many rows share a value."""
_WAY_TO_ANSWER = re.compile(
    "(^|_)(rationale|reasoning|reasoning_content|explanation|thinking|thought|thoughts|cot|chain_of_thought|solution)$"
)
"""Columns with the way to the answer, or with another answer. A prompt does not have them when the model is served."""
_BETTER_ANSWERS = frozenset(("corrected", "correction", "revision", "revised", "reflection", "critique"))
"""Columns with a better answer than the one beside them, or with what is wrong about it (Axolotl's reflection)."""
_BETTER = "may hold a better answer than the one that is used, or what is wrong about it"
_MOST_VALUES = 20
_OF_ANSWERS = re.compile(
    r"(^|_)(messages|conversations|responses?|completions|generations?|candidates|annotations|critiques?|rationales?|feedback)(_|$)"
    r"|(^|[_-])(chosen|rejected|preferred|score|rating|ratings|labelling|judge|reward|model|models)([_-]|$)"
)
"""Columns beside compared answers that repeat them, or hold who wrote and judged them."""
_JEOPARDY = ("question",)
_FEWEST_CATEGORIES = 4
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
_FEWEST_LETTERS = 4
"""Fewer letters, as those of the choices a and b, occur in every text by chance."""
_MOST_FRAMES = 3
"""The forms that a frame may have, for example one for rows with an input and one for rows without."""


@dataclass
class _Column:
    """What is known of one unused column. The sample leaves out values that repeat the conversation."""

    rows: int = 0
    flags: int = 0
    false: int = 0
    numbers: int = 0
    lowest: float = math.inf
    highest: float = -math.inf
    words: set[str] = field(default_factory=set)
    sampled: int = 0
    chars: int = 0
    phrases: int = 0
    values: set[int] = field(default_factory=set)
    frames: set[str] = field(default_factory=set)
    example: str = ""


class UnusedColumns:
    """The columns of a file that its layout does not use, with the number of rows that have a value in them."""

    def __init__(
        self,
        used: Collection[str],
        prompts: Sequence[str] = (),
        *,
        has_answers: bool = True,
        is_guessed: bool = False,
        describes_answers: bool = False,
    ) -> None:
        """Start to count.

        Args:
            used: The columns that the layout uses or the user ignores.
            prompts: The columns of which the prompt consists; empty where a conversation holds it.
            has_answers: Whether the model learns answers, and neither classes nor documents.
            is_guessed: Whether the user named neither the layout nor its columns, so that pairs are left out by accident.
            describes_answers: Whether the rows compare or rate answers. Their columns then hold who wrote or judged an answer.
        """
        self._used, self._prompts = frozenset(used), tuple(prompts)
        self._has_answers, self._is_guessed = (
            has_answers and not describes_answers,
            is_guessed and not describes_answers,
        )
        self._describes_answers = describes_answers
        self._columns: dict[str, _Column] = {}
        self._fields: Counter[str] = Counter()
        self._rows = 0

    @property
    def counts(self) -> Counter[str]:
        """The number of rows that have a value, by column, most frequent first."""
        return Counter({name: column.rows for name, column in self._columns.items()}) + self._fields

    @property
    def scores(self) -> dict[str, tuple[float, float]]:
        """The lowest and the highest number of each column that may rate the answers, where they differ."""
        return {
            name: (column.lowest, column.highest)
            for name, column in sorted(self._columns.items())
            if self._has_answers and column.numbers == column.rows and column.lowest < column.highest
        }

    def add_fields(self, names: Iterable[str]) -> None:
        """Count the fields of turns that are not used, each once for a row."""
        self._fields.update(names)

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
            _rate(column, str(name), value)
            if column.rows <= _SAMPLED_ROWS and not isinstance(value, int | float):
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
                if not text.strip() or _repeats(text, conversations, column.frames) or _lists(value, conversations):
                    continue
                _sample(column, text)

    def check(self) -> None:
        """Raise DataError for a column that rates or ranks answers, or that looks like a part of the task."""
        for name, column in sorted(self._columns.items()):
            if self._is_guessed:
                check_later_pairs(name, column.rows, self._rows)
            if self._has_answers:
                check_later_ratings(name, column.flags, column.rows)
                check_verdicts(name, column.false, column.flags, column.rows)
            check_removed(name, column.flags - column.false, column.flags, column.rows)
            check_split(name, column.words)
            if not self._is_of_task(name, column):
                continue
            example = column.example[:_EXAMPLE_CHARS] + ("..." if len(column.example) > _EXAMPLE_CHARS else "")
            what = _BETTER if name.lower() in _BETTER_ANSWERS else "looks like a part of the task"
            raise DataError(
                f"the column {name!r} is not used, and {what}: {column.rows:,} of {self._rows:,} rows "
                f"have a value in it, for example {example!r}; fix: data.ignore: [{name}] (-P data.ignore={shlex.quote(name)}) "
                f"trains without it{self._template_fix(name, column)}"
            )

    def _template_fix(self, name: str, column: _Column) -> str:
        if name.lower() in _BETTER_ANSWERS:
            return "; if it is a better answer, name it as the answer in data.columns"
        if _WAY_TO_ANSWER.search(name.lower()):
            return "; to learn it too, write it into the answers: in a prompt it would give the answer away"
        if not self._prompts:
            return ", or write it into the turns"
        *prompts, added = (n if n.isidentifier() else f"row[{n!r}]" for n in (*self._prompts, name))
        template = "\\n\\n".join(f"{{{{ {prompt} }}}}" for prompt in prompts)
        written = f"\\n\\n{{{{ {added} }}}}"
        # A template that writes a null value leaves the row out.
        template += written if column.rows == self._rows else f"{{% if {added} %}}{written}{{% endif %}}"
        return f', or data.prompt_template: "{template}" writes it into the prompt'

    def _is_of_task(self, name: str, column: _Column) -> bool:
        lowered = name.lower()
        if not column.sampled or _is_of_row(lowered) or (self._describes_answers and is_description(name)):
            return False
        if lowered in _BETTER_ANSWERS and self._has_answers:  # a revision may also be the number of a version
            return lowered == "corrected" or column.phrases >= _MOST * column.sampled
        if lowered in _TASK_NAMES or self._is_varied(lowered, column):
            return True
        return (
            column.sampled > 1
            and column.rows * 2 >= self._rows
            and column.sampled * 2 >= min(column.rows, _SAMPLED_ROWS)
            and column.chars >= _LONG_CHARS * column.sampled
            and column.phrases >= _MOST * column.sampled
            and len(column.values) >= _MOST * column.sampled
        )

    def _is_varied(self, name: str, column: _Column) -> bool:
        """Return whether a column that often describes a row says here what the prompt asks for.

        In translations that is the language, in questions of the form of Jeopardy the category.
        """
        if not self._has_answers or not self._prompts:
            return False
        if name == "language":
            return len(column.values) > 1
        few = max(_FEWEST_CATEGORIES, column.sampled // 10)
        return name == "category" and self._prompts == _JEOPARDY and len(column.values) >= few


def _rate(column: _Column, name: str, value: Any) -> None:
    """Count what a value of these columns says of the answer, or of the set to which the row belongs."""
    if name in RATINGS or name in VERDICTS or name in REMOVED:
        flag = flag_of(value)
        column.flags += flag is not None
        column.false += flag is False
    if name.lower() in SCORES and (number := _number(value)) is not None:
        column.numbers += 1
        column.lowest, column.highest = min(column.lowest, number), max(column.highest, number)
    if isinstance(value, str) and may_be_split(name) and len(column.words) < _MOST_VALUES:
        column.words.add(value)


def _number(value: Any) -> float | None:
    """Return a number, also one in the cell of a CSV file; None for another value."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def is_description(name: str) -> bool:
    """Return whether a column of compared or rated answers describes a row, or repeats, rates or explains its answers."""
    return _is_of_row(name.lower()) or _OF_ANSWERS.search(name.lower()) is not None


def _is_of_row(name: str) -> bool:
    return name in _DESCRIPTIONS or name.endswith(("_id", "_url", "_at", "rejected"))


def _sample(column: _Column, text: str) -> None:
    column.sampled += 1
    column.chars += len(text)
    # Ids and addresses are long and different in each row too, but they are not phrases.
    column.phrases += " " in text.strip() or (len(text) >= _LONG_CHARS and not text[:_LONG_CHARS].isascii())
    column.values.add(hash(text))
    column.example = column.example or text


def _repeats(text: str, conversations: Sequence[Sequence[Message]], frames: set[str]) -> bool:
    """Return whether a text is a part of the conversation, a copy of the whole of it, or its prompt in a fixed frame.

    Args:
        text: The value of a column.
        conversations: The conversations of its row.
        frames: The words that earlier rows have around their prompts; a new one is added while they are few.
    """
    for messages in conversations:
        # Layouts join columns with a blank line, and a copy may have other words between them.
        pieces = [_pieces([message]) for message in messages]
        if any(text.strip() in message["content"] for message in messages) or all(
            piece in text for turn in pieces for piece in turn
        ):
            return True
        prompt = _pieces([message for message in messages if message["role"] == "user"])
        if prompt and all(piece in text for piece in prompt) and _is_framed(text, prompt, frames):
            return True
    return False


def _lists(value: Any, conversations: Sequence[Sequence[Message]]) -> bool:
    """Return whether a value lists, in their order, words of one turn of each conversation."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        return False
    words = _letters("".join(value))
    return (
        bool(conversations)
        and len(words) >= _FEWEST_LETTERS
        and all(any(words in _letters(message["content"]) for message in messages) for messages in conversations)
    )


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text)).lower()


def _pieces(messages: Sequence[Message]) -> list[str]:
    pieces = [piece.strip() for message in messages for piece in message["content"].split("\n\n")]
    return [piece for piece in pieces if piece]


def _is_framed(text: str, prompt: Sequence[str], frames: set[str]) -> bool:
    """Return whether ``text`` is a prompt in the words that the prompts of other rows have around them, too."""
    for piece in sorted(prompt, key=len, reverse=True):
        text = text.replace(piece, "", 1)
    if len(frames) < _MOST_FRAMES:
        frames.add(text)
    return text in frames
