"""Pictures of requests: taken out of the messages before anything else reads these, checked, and drawn again as PNGs.

An engine never gets a client's bytes, and no log, error or metric has a picture: in the body of a checked request there is its hash.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlflow_finetune_plugin.images import PictureFault, PictureLimits, read_picture

MOST_PICTURES = 16
LIMITS = PictureLimits(max_bytes=10 * 2**20, max_pixels=40_000_000)
"""Of one picture. All pictures of a request together have at most as many pixels as one may have, because an engine holds them all."""
ROOM = 20 * 2**20
"""Bytes that all data URLs of a request may have, beside its other bytes: base64 of one picture of the largest size takes 14 MB."""

_START, _END = b'"data:image/', b'"'
_AT_ONCE = 2
_MOST_WAITING = 64


@dataclass(frozen=True)
class RequestPicture:
    """A picture that was checked.

    Attributes:
        sha256: The hash of the client's file.
        url: The data URL of a PNG with the same pixels.
    """

    sha256: str
    url: str = field(repr=False)


class TooManyPicturesError(Exception):
    """Too many requests wait for their pictures."""


class PictureReader:
    """Reads the pictures of requests in threads, a few requests at once. Decoding and compressing release Python's lock."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._waiting = 0

    async def read(self, urls: Sequence[str]) -> list[RequestPicture]:
        """Return the pictures of data URLs.

        Raises:
            PictureFault: One cannot be used.
            TooManyPicturesError: Too many requests wait.
        """
        if self._waiting >= _MOST_WAITING:
            raise TooManyPicturesError
        self._waiting += 1
        try:
            async with self._turns:
                return await asyncio.to_thread(read_pictures, urls)
        finally:
            self._waiting -= 1


def read_pictures(urls: Sequence[str]) -> list[RequestPicture]:
    """Return the pictures of data URLs, in their order. Raises PictureFault, with the number of the picture."""
    pictures, pixels = [], 0
    for number, url in enumerate(urls, start=1):
        try:
            if url[:5].lower() != "data:":
                raise PictureFault(
                    "picture not in the request",
                    "nothing is fetched from the network; fix: send it as a data URL, data:image/png;base64,...",
                )
            picture = read_picture(url, folder=None, limits=LIMITS)
            pixels += picture.width * picture.height
            if pixels > LIMITS.max_pixels:
                raise PictureFault(
                    "pictures too large", f"together over {LIMITS.max_pixels:,} pixels; fix: send smaller ones"
                )
        except PictureFault as fault:
            raise PictureFault(f"picture {number}: {fault.reason}", fault.detail) from fault
        png = base64.b64encode(picture.png()).decode("ascii")
        pictures.append(RequestPicture(picture.sha256, f"data:image/png;base64,{png}"))
    return pictures


def take_pictures(messages: Any) -> list[str]:
    """Take the URLs of pictures out of messages of any shape, and leave their numbers. ``messages`` is changed."""
    urls = []
    for number, picture in enumerate(_pictures_in(messages), start=1):
        urls.append(picture["url"])
        picture["url"] = f"picture {number}"
    return urls


def with_urls(messages: Sequence[dict[str, Any]], urls: Sequence[str]) -> list[dict[str, Any]]:
    """Return messages with other URLs in the places of their pictures, in their order."""
    left = iter(urls)

    def part(content: dict[str, Any]) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": next(left)}} if content["type"] == "image_url" else content

    return [
        {**turn, "content": [part(content) for content in turn["content"]]}
        if isinstance(turn.get("content"), list)
        else turn
        for turn in messages
    ]


def bytes_of_pictures(raw: bytes) -> int:
    """Return how many bytes of a body are data URLs of pictures, before it is parsed."""
    total, start = 0, raw.find(_START)
    while start >= 0:
        end = raw.find(_END, start + 1)
        end = len(raw) if end < 0 else end
        total += end - start
        start = raw.find(_START, end)
    return total


def picture_fault(part: dict[str, Any], role: str) -> tuple[str, str]:
    """Return what is wrong with the form of a part of type ``image_url``, and the error's code. Both are empty if nothing is."""
    if role != "user":
        return f"a picture in a turn of the role {role}; fix: send pictures in turns of the user", "unsupported_content"
    picture = part.get("image_url")
    if part.keys() - {"type", "image_url"} or not isinstance(picture, dict) or not isinstance(picture.get("url"), str):
        return 'a picture without its URL; fix: {"type": "image_url", "image_url": {"url": "data:..."}}', "invalid_type"
    if picture.keys() - {"url", "detail"} or picture.get("detail") not in (None, "auto"):
        return "the base decides the size of pictures; fix: send image_url with url alone", "unsupported_content"
    return "", ""


def _pictures_in(messages: Any) -> Iterator[dict[str, Any]]:
    for turn in messages if isinstance(messages, list) else ():
        content = turn.get("content") if isinstance(turn, dict) else None
        for part in content if isinstance(content, list) else ():
            picture = part.get("image_url") if isinstance(part, dict) and part.get("type") == "image_url" else None
            if isinstance(picture, dict) and isinstance(picture.get("url"), str):
                yield picture
