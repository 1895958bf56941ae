"""Read the pictures that a row has in a column, and put them into its user turns. Nothing is opened here.

Each ``<image>`` in a user turn, and each part ``{"type": "image"}`` without a picture, takes the next picture of the column. Where a
row has neither, its pictures come before the text of the first user turn, as in TRL.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from mlflow_finetune_plugin.data.conversations.row_faults import (
    PICTURES_AND_PLACES,
    TOO_MANY_PICTURES,
    UNSUPPORTED_FIELD,
    RowFault,
)
from mlflow_finetune_plugin.data.conversations.turns.picture_parts import (
    ColumnPicture,
    check_role,
    without_picture_parts,
)
from mlflow_finetune_plugin.evaluation.results import Message
from mlflow_finetune_plugin.images.turns import MARK, PICTURES, marked_text, pictures_of

ALL_PICTURES = "images"
"""The name with which ``data.ignore`` leaves out all pictures: those of every column, and those of the parts of turns."""
MOST_PICTURES = 16
"""Pictures of one row."""

_COLUMNS = ("images", "image", "image_paths", "image_path")
_FILE_NAME = "file_name"
_FILE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
PICTURE_COLUMNS = (*_COLUMNS, _FILE_NAME)
"""The columns that hold pictures. ``file_name`` is that of ``metadata.csv`` beside a folder of pictures, if it ends like a picture's."""
_PLACE = "<image>"
_CUTS = re.compile(f"({MARK}|{_PLACE})")


def picture_column(row: Mapping[str, Any], used: Collection[str]) -> str | None:
    """Return the column with the row's pictures, or None where it has none.

    Args:
        row: A row of a file.
        used: The columns of its layout, which hold no pictures.

    Raises:
        RowFault: several columns have pictures.
    """
    columns = [name for name in _COLUMNS if name in row and name not in used and _sources(row[name])]
    if len(columns) > 1:
        raise RowFault(
            UNSUPPORTED_FIELD,
            f"{' and '.join(columns)} both hold pictures; data.ignore: [{columns[-1]}] trains with the others",
        )
    if not columns and _FILE_NAME not in used and _names_picture(row.get(_FILE_NAME)):
        return _FILE_NAME
    return columns[0] if columns else None


def _names_picture(value: Any) -> bool:
    return isinstance(value, str) and value.lower().endswith(_FILE_SUFFIXES)


def _sources(value: Any) -> list[Any]:
    """Return the pictures of a value: one, a list, or a list as JSON text in a cell of a CSV file."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):  # else it is a file whose name begins so
            value = json.loads(value)
    if isinstance(value, list):
        return value
    is_nothing = (
        value is None
        or (isinstance(value, str) and not value.strip())
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, Mapping) and not any(value.values()))
    )
    return [] if is_nothing else [value]


def with_pictures(turns: Sequence[Message], row: Mapping[str, Any], used: Collection[str]) -> list[Message]:
    """Return the turns with the pictures of the row's column in their places.

    Args:
        turns: All turns of a conversation.
        row: Its row.
        used: The columns of its layout.

    Raises:
        RowFault: there are more or fewer places than pictures, or a picture is not in a user turn.
    """
    column = picture_column(row, used)
    sources = _sources(row[column]) if column else []
    if sources:
        turns = [_with_places(turn) for turn in turns]
    places = [picture for turn in turns for picture in turn.get(PICTURES, ()) if isinstance(picture, ColumnPicture)]
    if sources and not places:
        turns = _before_first_question(turns, sources, str(column))
    elif places:
        order = iter(_numbers(places, len(sources)))
        turns = [_filled(turn, sources, order) for turn in turns]
    if (count := len(pictures_of(turns))) > MOST_PICTURES:
        raise RowFault(TOO_MANY_PICTURES, f"{count} pictures; at most {MOST_PICTURES} of a row are read")
    return list(turns)


def _with_places(turn: Message) -> Message:
    """Return a turn with a place for a column's picture instead of each ``<image>`` in its text."""
    if _PLACE not in turn["content"]:
        return turn
    check_role(turn["role"])
    pictures_of_parts = iter(turn.get(PICTURES, ()))
    pieces: list[tuple[str, Any]] = []
    for text in _CUTS.split(turn["content"]):
        if text == _PLACE:
            pieces.append(("picture", ColumnPicture()))
        elif text == MARK and PICTURES in turn:
            pieces.append(("picture", next(pictures_of_parts)))
        else:
            pieces.append(("text", text))
    text, pictures = marked_text(pieces)
    return {**turn, "content": text, PICTURES: pictures}


def _numbers(places: Sequence[ColumnPicture], count: int) -> list[int]:
    """Return the number of the picture in each place."""
    numbers = [number if place.index is None else place.index for number, place in enumerate(places)]
    if set(numbers) != set(range(count)):
        raise RowFault(
            PICTURES_AND_PLACES,
            f"places in the turns ({_PLACE}, or a part without its picture): {len(places)}, pictures in the row: {count}",
        )
    return numbers


def _filled(turn: Message, sources: Sequence[Any], order: Iterator[int]) -> Message:
    if PICTURES not in turn:
        return turn
    pictures = [sources[next(order)] if isinstance(p, ColumnPicture) else p for p in turn[PICTURES]]
    return {**turn, PICTURES: pictures}


def _before_first_question(turns: Sequence[Message], sources: Sequence[Any], column: str) -> list[Message]:
    if pictures_of(turns):
        raise RowFault(
            UNSUPPORTED_FIELD,
            f"{column}: the turns hold pictures too; data.ignore: [{column}] trains with those of the turns",
        )
    first = next((number for number, turn in enumerate(turns) if turn["role"] == "user"), None)
    if first is None:
        raise RowFault(
            UNSUPPORTED_FIELD, f"{column}: no user turn shows it; data.ignore: [{ALL_PICTURES}] trains without it"
        )
    text, pictures = marked_text([*(("picture", source) for source in sources), ("text", turns[first]["content"])])
    return [*turns[:first], {**turns[first], "content": text, PICTURES: pictures}, *turns[first + 1 :]]


def refuse_pictures(row: Mapping[str, Any], used: Collection[str]) -> None:
    """Raise RowFault for a row of pairs, ratings or prompts with pictures in a column."""
    if column := picture_column(row, used):
        raise RowFault(
            UNSUPPORTED_FIELD, f"{column}: {NOT_IN_THIS_FORM}; data.ignore: [{ALL_PICTURES}] trains without it"
        )


NOT_IN_THIS_FORM = "pictures are read in rows of answers only, and not in pairs, ratings or prompts"


def ignored_columns(ignore: Collection[str], used: Collection[str]) -> frozenset[str]:
    """Return the columns that ``data.ignore`` leaves out. ``images`` leaves out the pictures of every column.

    Args:
        ignore: What ``data.ignore`` names.
        used: The columns that the user named for a part of the layout.
    """
    pictures = set(PICTURE_COLUMNS) - set(used) if ALL_PICTURES in ignore else set()
    return frozenset({*ignore, *pictures})


def without_pictures(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the row without the pictures of its turns."""
    return {column: without_picture_parts(value) for column, value in row.items()}
