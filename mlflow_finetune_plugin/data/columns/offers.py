"""Offer the settings that name the columns of a file, as text for an error: in a recipe, and as the command to type."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

BESIDE_TEXT = frozenset(
    ("id", "url", "source", "timestamp", "date", "title", "author", "meta", "metadata", "lang", "language", "license")
)
"""Columns that describe the source of a text. A ``text`` column with no other columns than these holds documents."""

_SOURCES = ("source", "src")
_ANSWERS = ("target", "tgt", "translation", "summary", "highlights")
"""Columns of parallel texts, as translations and summaries have them."""

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
    texts = _two_texts(values)
    # A whole sentence is not a name.
    if texts is None or any(len(name) > _LONGEST_NAME or name.rstrip().endswith((".", "?", "!")) for name in texts):
        return ""
    few, many = sorted(texts, key=lambda name: len(set(values[name])))
    classes = len(set(values[few]))
    if classes * 3 > len(values[few]) or max(map(len, values[few])) > _LONGEST_LABEL:
        parts = {"prompt": texts[0], "completion": texts[1]}
        return f"; perhaps {columns_command(parts)} (two columns of text, in this direction or the reverse)"
    if classes == 1 or len(rows) < _FEWEST_ROWS or few in BESIDE_TEXT:
        return ""
    reason = f"{few!r} has {classes} different values, as labels have"
    return f"; perhaps {columns_command({'text': many, 'label': few})} ({reason})"


def _two_texts(values: Mapping[str, Sequence[Any]]) -> list[str] | None:
    """Return the two columns of text, a known answer last; None where there are more or fewer.

    ``source`` describes a text, except beside an answer. With a further column, the names do not show which are the task;
    beside parallel texts it may be a number.
    """
    strings = [name for name in values if values[name] and all(isinstance(value, str) for value in values[name])]
    texts = [name for name in strings if name not in BESIDE_TEXT]
    parallel = [name for name in strings if name.lower() in (*_SOURCES, *_ANSWERS)]
    if len(parallel) == 2 and set(texts) <= set(parallel):
        texts = parallel
    numbers = {name for name in values if all(isinstance(value, int | float) for value in values[name])}
    others = set(values) - {*texts, *BESIDE_TEXT} - (numbers if texts == parallel else set())
    return sorted(texts, key=lambda name: name.lower() in _ANSWERS) if len(texts) == 2 and not others else None


def has_no_header(rows: Sequence[Mapping[str, Any]], present: Sequence[str]) -> bool:
    """Return whether the names of the columns are data: one is a phrase, and one is also a value of its column."""
    return any(" " in name.strip() for name in present) and any(
        row.get(name) == name for row in rows for name in present
    )
