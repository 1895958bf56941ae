"""Read a picture from what a row or a request names: a path, a data URL, bytes, or a link to an allowed host."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.images.links import LINK, PictureLinks
from mlflow_finetune_plugin.images.picture import TOO_LARGE, UNREADABLE, Picture, PictureFault, PictureLimits

MISSING = "missing picture"

_DATA_URL = re.compile(r"data:(?:image/[\w.+-]+)?(?:;[\w=.-]+)*?;base64,", re.IGNORECASE)
_LINK = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_SHOWN_CHARS = 60


def read_picture(
    source: Any, *, folder: Path | None, limits: PictureLimits | None = None, links: PictureLinks | None = None
) -> Picture:
    """Return the picture that ``source`` names.

    Args:
        source: A data URL, bytes, a path relative to ``folder`` or absolute, ``file://`` with one, or an object with ``bytes`` or
            ``path``, as ``datasets`` writes pictures.
        folder: The folder of the data file; None where the source is of a client, who must not name files.
        limits: What the picture may be.
        links: Fetches links; None refuses them.

    Raises:
        PictureFault: there is no such picture, it is behind a link that may not be fetched, or it cannot be used.
    """
    limits = limits or PictureLimits()
    if isinstance(source, Mapping):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, bytes | bytearray | memoryview):
        return Picture.of(bytes(source), limits)
    if not isinstance(source, str) or not source.strip():
        raise PictureFault(MISSING, f"{type(source).__name__} is not a path, a data URL or bytes of a picture")
    if source[:5].lower() == "data:":
        return Picture.of(_of_data_url(source, limits), limits)
    if source[:7].lower() == "file://":
        source = source[7:]
    elif _LINK.match(source):
        if links is None:
            raise PictureFault(
                LINK, f"{_excerpt(source)}: nothing is fetched from the network; fix: send the picture itself"
            )
        return Picture.of(links.fetch(source, limits), limits)
    if folder is None:
        raise PictureFault(UNREADABLE, "not a data URL; fix: send the picture as data:image/png;base64,...")
    return Picture.of(_of_file(folder / source, source, limits), limits)


def _of_data_url(url: str, limits: PictureLimits) -> bytes:
    head = _DATA_URL.match(url)
    if head is None:
        raise PictureFault(
            UNREADABLE, "a data URL of a picture begins with data:image/png;base64,"
        )  # no part of the data
    if len(url) - head.end() > limits.max_bytes * 4 // 3 + 4:
        raise PictureFault(TOO_LARGE, f"over {limits.max_bytes:,} bytes")
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise PictureFault(UNREADABLE, f"its base64 text is not valid: {error}") from error


def _of_file(path: Path, name: str, limits: PictureLimits) -> bytes:
    try:
        if not path.is_file():
            raise PictureFault(MISSING, f"{_excerpt(name)}: no such file")
        size = path.stat().st_size
        if size > limits.max_bytes:
            raise PictureFault(TOO_LARGE, f"{_excerpt(name)}: {size:,} bytes; at most {limits.max_bytes:,} are read")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise PictureFault(UNREADABLE, f"{_excerpt(name)}: {error}") from error


def _excerpt(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."
