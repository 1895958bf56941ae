"""Find answers that name their model. A vote on such a turn is not fully blind, so it is marked."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

SELF_NAMING = "self-naming answer"
"""The reason tag of votes on such a turn."""
MASK = "▮▮▮"

# The vendors and families that FastChat's cleaning of arena battles looks for, and later ones. "claude" is also a first
# name, and "llama", "phi" and "gemini" have other meanings, so a family counts only after words of an introduction.
_FAMILIES = (
    "chatgpt|gpt[- ]?[0-9o][\\w.-]*|openai|claude|anthropic|bard|gemini|gemma|llama|vicuna|alpaca|koala|mistral|mixtral|"
    "qwen|tongyi|alibaba|deepseek|grok|phi-?[0-9]*|falcon|dolly|stablelm|olmo|smollm\\w*|tinyllama|command[- ]?r|cohere|"
    "baichuan|chatglm|yi-[0-9]\\w*|kimi|moonshot|nemotron|granite|tinystories\\w*"
)
_INTRODUCES = re.compile(
    r"\b(?:i\s*am|i['’]m|this\s+is|my\s+name\s+is|call(?:ed)?\s+me|i\s+was\s+(?:made|trained|created|built|developed)\s+by|"
    r"as|known\s+as|named|called)\s+(?:an?\s+|the\s+)?(?:\w+\s+){0,4}?(?:" + _FAMILIES + r")\b",
    re.IGNORECASE,
)


def names_itself(text: str, identities: Iterable[str]) -> bool:
    """Whether ``text`` contains an identity of the turn's contenders, or introduces its author as a known model."""
    pattern = _identities(tuple(sorted(set(identities))))
    return (pattern is not None and pattern.search(text) is not None) or _INTRODUCES.search(text) is not None


def masked(text: str, identities: Iterable[str], *, is_whole: bool = True) -> str:
    """Return ``text`` with the contenders' identities masked, as it may be shown while names are hidden.

    With ``is_whole`` false, an end of the text that may become an identity is left out.
    """
    names = tuple(sorted(set(identities)))
    pattern = _identities(names)
    if pattern is None:
        return text
    return pattern.sub(MASK, text if is_whole else text[: len(text) - _beginning(text, names)])


def _beginning(text: str, names: Iterable[str]) -> int:
    """Return how many characters at the end of ``text`` are the beginning of an identity."""
    lower, longest = text[-200:].lower(), 0
    for name in names:
        if is_distinctive(name):
            lengths = (n for n in range(min(len(name), len(lower)), 0, -1) if lower.endswith(name[:n].lower()))
            longest = max(longest, next(lengths, 0))
    return longest


def is_distinctive(name: str) -> bool:
    """Whether a name can be searched for in prose: ``my-bot/2`` can, ``base`` cannot."""
    return len(name) >= 4 and re.search(r"[^A-Za-z]", name) is not None


@lru_cache(maxsize=256)
def _identities(names: tuple[str, ...]) -> re.Pattern[str] | None:
    patterns = [re.escape(name) for name in sorted(names, key=len, reverse=True) if is_distinctive(name)]
    return re.compile(rf"(?<!\w)(?:{'|'.join(patterns)})(?!\w)", re.IGNORECASE) if patterns else None
