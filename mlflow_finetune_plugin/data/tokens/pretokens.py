"""Find blanks at which a text can be cut so that its parts tokenize as they do within the whole.

Byte-level BPE splits a text by a regular expression before it merges. In the expressions known here no match continues with a
blank after a letter, and none looks back. So a blank after an ASCII letter always starts a new piece: the ids of the text are the
ids of the part before that blank followed by the ids of the rest.
"""

from __future__ import annotations

import json
from typing import Any

_CUTS = frozenset(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    + digits
    + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in (r"\p{N}", r"\p{N}{1,3}")  # Qwen 2 and 3; Llama 3
)
_LONGEST_SEARCH = 50


def cuts_at_blanks(tokenizer: Any) -> bool:
    """Return whether this tokenizer always cuts at such blanks; False where that is not known."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    cutters = described.get("pre_tokenizer") or {}
    steps = cutters.get("pretokenizers", [cutters])
    if described["model"]["type"] != "BPE" or (described.get("normalizer") or {"type": "NFC"}) != {"type": "NFC"}:
        return False
    if any(token["lstrip"] or token["rstrip"] or " " in token["content"] for token in described["added_tokens"]):
        return False
    return all(_is_known(step) for step in steps) and any(_cuts(step) for step in steps)


def cut_before(text: str, end: int) -> int:
    """Return the last blank after an ASCII letter before ``end``; 0 if there is none nearby."""
    at = end
    for _ in range(_LONGEST_SEARCH):
        at = text.rfind(" ", 0, at)
        if at <= 0:
            return 0
        if text[at - 1].isascii() and text[at - 1].isalpha():
            return at
    return 0


def _is_known(step: dict[str, Any]) -> bool:
    kind = step.get("type")
    return kind == "Digits" or (kind == "ByteLevel" and not step["add_prefix_space"]) or _is_known_split(step)


def _is_known_split(step: dict[str, Any]) -> bool:
    pattern = step.get("pattern") or {}
    return (
        step.get("type") == "Split"
        and step.get("behavior") == "Isolated"
        and not step.get("invert")
        and pattern.get("Regex") in _CUTS
    )


def _cuts(step: dict[str, Any]) -> bool:
    return _is_known_split(step) or (step.get("type") == "ByteLevel" and bool(step.get("use_regex", True)))
