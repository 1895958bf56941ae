"""Two answers word by word: what they share, and what only one of them says."""

from __future__ import annotations

import difflib
import html
import re

_WORDS = re.compile(r"\s+|\w+|[^\w\s]")
LONGEST = 40_000
"""Characters of each; the comparison takes time that grows with the product."""


def differences(left: str, right: str) -> tuple[str, str]:
    """Both as HTML, every text of theirs escaped; ``<mark>`` is around what one alone says: neither is the other's correction."""
    if left == right:
        return html.escape(left), html.escape(right)
    a, b = _WORDS.findall(left[:LONGEST]), _WORDS.findall(right[:LONGEST])
    parts: tuple[list[str], list[str]] = ([], [])
    for tag, a0, a1, b0, b1 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        for side, words in ((0, a[a0:a1]), (1, b[b0:b1])):
            text = html.escape("".join(words))
            parts[side].append(text if tag == "equal" or not text else f"<mark>{text}</mark>")
    rests = (left[LONGEST:], right[LONGEST:])
    told = ["".join(part) + html.escape(rest) for part, rest in zip(parts, rests, strict=True)]
    return told[0], told[1]
