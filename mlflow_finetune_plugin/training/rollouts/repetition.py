"""How much of a text repeats itself. A reward that is hacked often shows as loops."""

from __future__ import annotations

_WORDS = 3


def repeated_share(text: str) -> float:
    """Return the share of three-word sequences that occurred before in the text; 0 for texts of up to three words."""
    words = text.split()
    grams = [tuple(words[i : i + _WORDS]) for i in range(len(words) - _WORDS + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
