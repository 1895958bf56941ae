"""The pictures of a conversation: read within limits, re-encoded, and sent to all sides alike."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow_finetune_plugin.errors import FinetuneError
from mlflow_finetune_plugin.images.picture import Picture, PictureFault, PictureLimits
from mlflow_finetune_plugin.images.sources import read_picture
from mlflow_finetune_plugin.images.turns import MARK, PICTURES, for_request

MOST_PICTURES = 4
"""Of one prompt."""
MOST_IN_CONVERSATION = 16
"""The router's limit of one request."""
MOST_CHARACTERS = 18_000_000
"""Of the data URLs of a conversation: a request to the router has room for a little more."""
_LIMITS = PictureLimits(max_bytes=10_000_000)
_LARGEST_SIDE = 1024
"""Pixels. A larger picture is scaled down, for all sides alike: its PNG then has at most 3.2 MB, and a router accepts several."""
_THUMBNAIL = 320


class PictureError(FinetuneError, ValueError):
    """A picture that cannot be sent. The message says why, and what to do."""


@dataclass(frozen=True)
class ShownPicture:
    """A picture as it is sent, and as the page shows it.

    Attributes:
        name: The SHA-256 of the PNG that is sent.
        url: The PNG as a data URL, which every side receives.
        thumbnail: A smaller JPEG as a data URL.
    """

    name: str
    url: str
    thumbnail: str


def read_pictures(urls: Sequence[Any]) -> list[ShownPicture]:
    """Return the pictures of data URLs. It blocks. Raises PictureError for the first that cannot be used."""
    if len(urls) > MOST_PICTURES:
        raise PictureError(f"{len(urls)} pictures; a prompt takes at most {MOST_PICTURES}.")
    return [_read(number, url) for number, url in enumerate(urls, start=1)]


def _read(number: int, url: Any) -> ShownPicture:
    try:
        picture = read_picture(url if isinstance(url, str) else None, folder=None, limits=_LIMITS)
    except PictureFault as fault:
        raise PictureError(
            f"Picture {number} cannot be used: {fault.reason}. Choose a PNG, JPEG or WebP file."
        ) from fault
    pixels = picture.pixels()
    pixels.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    png = io.BytesIO()
    pixels.save(png, "PNG")
    pixels.thumbnail((_THUMBNAIL, _THUMBNAIL))
    small = io.BytesIO()
    pixels.save(small, "JPEG", quality=85)
    name = Picture.of(png.getvalue()).sha256
    return ShownPicture(name, _data_url("png", png.getvalue()), _data_url("jpeg", small.getvalue()))


def _data_url(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def picture_turn(text: str, names: Sequence[str]) -> dict[str, Any]:
    """Return a user's turn with pictures before its text (``images.turns``)."""
    turn: dict[str, Any] = {"role": "user", "content": MARK * len(names) + (text.replace(MARK, "") if names else text)}
    return {**turn, PICTURES: list(names)} if names else turn


def request_messages(
    messages: Iterable[Mapping[str, Any]], pictures: Mapping[str, ShownPicture]
) -> list[dict[str, Any]]:
    """Return turns as OpenAI's API takes them, with the data URLs of their pictures."""
    return [for_request(message, lambda name: pictures[name].url) for message in messages]


def numbered(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return turns whose text names each picture by its number in the conversation: ``[picture 1]``."""
    turns, number = [], 0
    for message in messages:
        first, *rest = str(message["content"]).split(MARK) if message.get(PICTURES) else [str(message["content"])]
        text = first
        for part in rest:
            number += 1
            text += f"[picture {number}] {part}"
        turns.append({**message, "content": text})
    return turns
