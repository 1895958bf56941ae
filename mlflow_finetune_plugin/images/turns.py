"""Turns with pictures: a text with a mark in the place of each picture, and the pictures in their order beside it.

``{"role": "user", "content": "\ufffcWhat is this?", "pictures": [SHA256]}``. A conversation names a picture by the hash of its bytes
(``store.py``), so a turn stays small and text remains text for everything that counts, compares or shows it. Chat templates and chat
APIs take a list of parts instead, which is made here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

MARK = "\N{OBJECT REPLACEMENT CHARACTER}"
"""The place of a picture in a turn's text."""
PICTURES = "pictures"
"""The field of a turn with its pictures, one for each mark."""


def pictures_of(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what the turns name as their pictures, in the order of the conversation."""
    return [name for message in messages for name in message.get(PICTURES, ())]


def with_parts(message: Mapping[str, Any], picture_part: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Return a turn whose content is a list of parts if it has pictures, else the turn as it is.

    Args:
        message: The turn.
        picture_part: Returns the part for what the turn names as a picture.
    """
    fields = {key: value for key, value in message.items() if key != PICTURES}
    if not message.get(PICTURES):
        return fields
    texts = message["content"].split(MARK)
    parts: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        if number:
            parts.append(picture_part(message[PICTURES][number - 1]))
        if text:
            parts.append({"type": "text", "text": text})
    return {**fields, "content": parts}


def for_template(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a turn as chat templates read it: ``{"type": "image"}`` in the place of each picture."""
    return with_parts(message, lambda _: {"type": "image"})


def for_request(message: Mapping[str, Any], data_url: Callable[[str], str]) -> dict[str, Any]:
    """Return a turn as OpenAI's chat API takes it: ``image_url`` parts with the data URL of each picture."""
    return with_parts(message, lambda name: {"type": "image_url", "image_url": {"url": data_url(name)}})


def marked_text(texts_and_pictures: Sequence[tuple[str, Any]]) -> tuple[str, list[Any]]:
    """Return a text with marks and its pictures.

    Args:
        texts_and_pictures: ``("text", TEXT)`` and ``("picture", SOURCE)`` in their order. A mark within a text is removed: nothing
            would belong to it.
    """
    text, pictures = [], []
    for kind, value in texts_and_pictures:
        if kind == "picture":
            text.append(MARK)
            pictures.append(value)
        else:
            text.append(value.replace(MARK, ""))
    return "".join(text), pictures
