"""Read the pictures among the parts of a turn's content, as OpenAI, Transformers, Anthropic and Qwen write them.

A part holds the picture itself or its address (a path, a data URL, bytes, a link), or neither: then it takes the next picture of the
row's column (``conversations/pictures.py``). Nothing is opened here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow_finetune_plugin.data.conversations.row_faults import EMPTY_PROMPT, UNSUPPORTED_FIELD, RowFault
from mlflow_finetune_plugin.data.conversations.texts import part_text, verbatim
from mlflow_finetune_plugin.images.turns import PICTURES, marked_text

_OPENAI = ("image_url", "input_image")
_IMAGE = "image"
_SOURCES = ("image", "path", "url", "image_url", "bytes", "source")
"""The fields of a part that name its picture, beside ``base64``."""
_CONTENTS = ("content", "parts", "value")


@dataclass(frozen=True)
class ColumnPicture:
    """A place for a picture of the row's column: the one with this number, from 0, or the next one."""

    index: int | None = None


def is_picture_part(part: Any) -> bool:
    """Return whether a part of a content holds a picture. Qwen's parts have no type."""
    if not isinstance(part, Mapping):
        return False
    kind = part.get("type")
    return kind in (*_OPENAI, _IMAGE) or (kind is None and part.get(_IMAGE) is not None)


def has_pictures(content: Any) -> bool:
    """Return whether a content is a list of parts of which one holds a picture."""
    return isinstance(content, list) and any(map(is_picture_part, content))


def content_with_pictures(parts: Sequence[Any], name: str, role: str) -> dict[str, Any]:
    """Return the content of a user turn with a mark for each picture, and what its parts name as pictures, as fields of a turn.

    Args:
        parts: The parts, of which one holds a picture.
        name: The name of the content, for faults.
        role: The role of the turn.

    Raises:
        RowFault: the turn is not a user turn, or a part cannot be read.
    """
    check_role(role)
    pieces = [
        ("picture", _source(part)) if is_picture_part(part) else ("text", part_text(part, name, EMPTY_PROMPT))
        for part in parts
    ]
    text, pictures = marked_text(pieces)
    return {"content": verbatim(text, name, EMPTY_PROMPT), PICTURES: pictures}


def check_role(role: str) -> None:
    """Raise RowFault for a picture in a turn of a role that shows none."""
    if role != "user":
        raise RowFault(
            UNSUPPORTED_FIELD,
            f"a picture in {'an' if role == 'assistant' else 'a'} {role} turn: only user turns hold pictures",
        )


def _source(part: Mapping[str, Any]) -> Any:
    """Return what a part names as its picture, for ``images.read_picture``, or a ``ColumnPicture`` if it names nothing."""
    if part.get("base64") is not None:
        return _data_url(part["base64"])
    value = next((part[key] for key in _SOURCES if part.get(key) is not None), None)
    if value is None and part.get("type") == _IMAGE:
        index = part.get("index")
        return ColumnPicture(index if isinstance(index, int) and index >= 0 else None)
    if isinstance(value, Mapping) and value.get("type") == "base64":  # Anthropic
        return _data_url(value.get("data"))
    return value["url"] if isinstance(value, Mapping) and value.get("url") is not None else value


def _data_url(text: Any) -> Any:
    is_bare = isinstance(text, str) and text[:5].lower() != "data:"
    return f"data:image/png;base64,{text}" if is_bare else text  # the bytes decide on the format, not the address


def without_picture_parts(value: Any) -> Any:
    """Return the value of a column without the picture parts of its turns: a list of turns, one turn, or one with ``messages``."""
    if isinstance(value, list):
        return [without_picture_parts(turn) if isinstance(turn, dict) else turn for turn in value]
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("messages"), list):
        return {**value, "messages": without_picture_parts(value["messages"])}
    return {
        key: [part for part in content if not is_picture_part(part)]
        if key in _CONTENTS and has_pictures(content)
        else content
        for key, content in value.items()
    }
