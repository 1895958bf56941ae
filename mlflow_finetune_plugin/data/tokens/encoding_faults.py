"""Detect texts that went through a wrong encoding. They are counted and never repaired."""

from __future__ import annotations

import re
from collections.abc import Iterator

MOJIBAKE = "mojibake"
REPLACED = "replacement character"
CONTROLS = "control characters"
UNKNOWN = "unknown characters"
"""Characters of an answer for which the base's tokenizer has only its unknown token."""

_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_CONTINUATION = "[\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
_MOJIBAKE = re.compile(f"[ÂÃÄÅÐÑ]{_CONTINUATION}|[âãäåæçèé]{_CONTINUATION}{_CONTINUATION}|ð{_CONTINUATION}{{3}}")
_SIGNS = frozenset("“”‘’‚„–—…«»‹›™®©°·´¨ºª¹²³")
"""Continuation bytes that are signs. After a capital letter, or an accented one, they also occur in sound text: «AMANHû."""
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
        if _decodes(match.group()) and not _may_be_signs(text, match):
            yield MOJIBAKE, _excerpt(text, match.start())
            return


def _may_be_signs(text: str, match: re.Match[str]) -> bool:
    """Return whether a match may be a letter before punctuation: all but its first character are signs.

    Inside a word it is a fault (``sÃ»r``).
    """
    signs = match.group()[1:]
    if not _SIGNS.issuperset(signs):
        return False
    before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
    if len(signs) > 1:  # three bytes are a letter of a script whose texts have many of them
        return not _MOJIBAKE.match(text, match.end())
    return not (before.islower() or after.isalpha())


def _decodes(piece: str) -> bool:
    """Return whether these characters are the UTF-8 bytes of a single character."""
    try:
        raw = b"".join(bytes([ord(c)]) if ord(c) < 256 else c.encode("cp1252") for c in piece)
        return len(raw.decode("utf-8")) == 1
    except UnicodeError:
        return False


def _excerpt(text: str, at: int) -> str:
    return repr(text[max(0, at - _AROUND) : at + _AROUND])
