"""What the fields of a request hold, said before an engine sees them: engines differ in what they take, and in how they refuse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text_or_texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(_is_whole(one) and one >= 0 for one in value)


Kind = tuple[Callable[[Any], bool], str]
_WHOLE: Kind = (_is_whole, "a whole number")
_NUMBER: Kind = (_is_number, "a number")
_SWITCH: Kind = (lambda value: isinstance(value, bool), "true or false")

_KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(
        ("max_tokens", "max_completion_tokens", "min_tokens", "top_k", "seed", "top_logprobs", "n", "best_of"), _WHOLE
    ),
    **dict.fromkeys(
        ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"), _NUMBER
    ),
    **dict.fromkeys(("stream", "ignore_eos", "echo", "parallel_tool_calls", "store"), _SWITCH),
    "model": (lambda value: isinstance(value, str), "text"),
    "user": (lambda value: isinstance(value, str), "text"),
    "stop": (_is_text_or_texts, "text, or a list of texts"),
    "stop_token_ids": (_are_ids, "a list of token ids"),
    "logit_bias": (lambda value: isinstance(value, dict), "an object"),
    "messages": (lambda value: isinstance(value, list), "a list of turns"),
}
_MOST = {"temperature": 2.0, "top_p": 1.0, "min_p": 1.0}
"""OpenAI's own limits, where a value beyond them can only be a mistake; the least is 0."""


def field_fault(body: Mapping[str, Any]) -> tuple[str, str] | None:
    """(field, what is wrong with it) of the first field that holds what it cannot; None when there is none."""
    for field, value in body.items():
        is_one, wanted = _KINDS.get(field, (None, ""))
        if is_one is not None and not is_one(value):
            return field, f"{field} = {value!r:.60}: expected {wanted}"
        if field in _MOST and not 0 <= value <= _MOST[field]:
            return field, f"{field} = {value!r:.60}: expected a number from 0 to {_MOST[field]:g}"
    return None
