"""Detect texts that went through a wrong encoding. They are counted and never repaired."""

from __future__ import annotations

import re
from collections.abc import Iterator

MOJIBAKE = "mojibake"
REPLACED = "replacement character"
CONTROLS = "control characters"

_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_CONTINUATION = "[\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
_MOJIBAKE = re.compile(f"[ÂÃÄÅÐÑ]{_CONTINUATION}|[âãäåæçèé]{_CONTINUATION}{_CONTINUATION}|ð{_CONTINUATION}{{3}}")
_AROUND = 20


def encoding_faults(text: str) -> Iterator[tuple[str, str]]:
    """Yield (fault, excerpt) for each kind of fault: UTF-8 read as Windows-1252, U+FFFD, control characters."""
    if match := _CONTROLS.search(text):
        yield CONTROLS, _excerpt(text, match.start())
    if text.isascii():
        return
    at = text.find("\ufffd")
    if at >= 0:
        yield REPLACED, _excerpt(text, at)
    for match in _MOJIBAKE.finditer(text):
        if _decodes(match.group()):
            yield MOJIBAKE, _excerpt(text, match.start())
            return


def _decodes(piece: str) -> bool:
    """Return whether these characters are the UTF-8 bytes of a single character."""
    try:
        raw = b"".join(bytes([ord(c)]) if ord(c) < 256 else c.encode("cp1252") for c in piece)
        return len(raw.decode("utf-8")) == 1
    except UnicodeError:
        return False


def _excerpt(text: str, at: int) -> str:
    return repr(text[max(0, at - _AROUND) : at + _AROUND])
