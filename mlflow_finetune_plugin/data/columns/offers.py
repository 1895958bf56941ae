"""Offer the settings that name the columns of a file, as text for an error: in a recipe, and as the command to type."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

BESIDE_TEXT = frozenset(
    ("id", "url", "source", "timestamp", "date", "title", "author", "meta", "metadata", "lang", "language", "license")
)
"""Columns that describe the source of a text. A ``text`` column with no other columns than these holds documents."""

_FEWEST_ROWS = 10
_LONGEST_LABEL = 60
_LONGEST_NAME = 60


def columns_command(columns: Mapping[str, str]) -> str:
    """Return the options that name these columns, by part."""
    return " ".join(f"-P {shlex.quote(f'data.columns.{part}={column}')}" for part, column in columns.items())


def columns_fix(columns: Mapping[str, str]) -> str:
    """Return the setting that names these columns, by part, and its options."""
    listed = ", ".join(f"{part}: {column}" for part, column in columns.items())
    return f"data.columns: {{{listed}}} ({columns_command(columns)})"


def columns_offer(rows: Sequence[Mapping[str, Any]], present: Sequence[str]) -> str:
    """Return options for a file with one column of long texts and one of few short ones, or with two columns of text."""
    values = {name: [row[name] for row in rows if row.get(name) not in (None, "")] for name in present}
    texts = [
        name
        for name, column in values.items()
        if name not in BESIDE_TEXT and column and all(isinstance(value, str) for value in column)
    ]
    # With a further column, the names do not show which of them are the task. A whole sentence is not a name.
    if any(len(name) > _LONGEST_NAME or name.rstrip().endswith((".", "?", "!")) for name in texts):
        return ""
    if len(texts) != 2 or len(rows) < _FEWEST_ROWS or set(present) - {*texts, *BESIDE_TEXT}:
        return ""
    few, many = sorted(texts, key=lambda name: len(set(values[name])))
    is_class = len(set(values[few])) * 3 <= len(values[few]) and max(map(len, values[few])) <= _LONGEST_LABEL
    parts = {"text": many, "label": few} if is_class else {"prompt": texts[0], "completion": texts[1]}
    reason = (
        f"{few!r} has {len(set(values[few]))} different values, as labels have" if is_class else "two columns of text"
    )
    return f"; perhaps {columns_command(parts)} ({reason})"


def has_no_header(rows: Sequence[Mapping[str, Any]], present: Sequence[str]) -> bool:
    """Return whether the names of the columns are data: one is a phrase, and one is also a value of its column."""
    return any(" " in name.strip() for name in present) and any(
        row.get(name) == name for row in rows for name in present
    )
