"""Read the texts of a row verbatim, or raise the fault that leaves the row out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlflow_finetune_plugin.data.conversations.row_faults import (
    BROKEN_UNICODE,
    EMPTY_COMPLETION,
    EMPTY_PROMPT,
    NULL_FIELD,
    UNSUPPORTED_FIELD,
    WRONG_TYPE,
    RowFault,
)

REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""The fields of a turn for what the model thinks before it answers. Conversations hold the first, whatever the file has."""
_TEXT_PARTS = ("text", "input_text", "output_text", None)
"""The types of a content part that holds text; Bedrock's parts have no type."""

_THINKING = ("thinking", "reasoning")
"""The types of a content part that holds what the model thinks before it answers; see ``thinking_text``."""


def verbatim(value: Any, name: str, if_empty: str) -> str:
    """Return ``value`` if it is a text with more than whitespace.

    Args:
        value: The value of a column or of a turn.
        name: Its name, for the fault.
        if_empty: The reason of the fault for an empty text.
    """
    if value is None:
        raise RowFault(NULL_FIELD, name)
    if not isinstance(value, str):
        raise RowFault(WRONG_TYPE, f"{name} is {excerpt_of(value)}, not text")
    if not value.strip():
        raise RowFault(if_empty, name)
    if not value.isascii():
        _check_unicode(value, name)
    return value


def content_text(value: Any, name: str, if_empty: str) -> str:
    """Return a content as ``verbatim`` does. The texts of a list of parts, as OpenAI and Anthropic write it, are joined."""
    if not isinstance(value, list):
        return verbatim(value, name, if_empty)
    return verbatim("".join([part_text(part, name, if_empty) for part in value]), name, if_empty)


def part_text(part: Any, name: str, if_empty: str) -> str:
    """Return the text of one part of a content; "" for what the model thinks."""
    if not isinstance(part, dict):
        raise RowFault(WRONG_TYPE, f"a part of {name} is {excerpt_of(part)}, not an object")
    kind = part.get("type")
    if _is_thinking(part):
        return ""
    if kind not in _TEXT_PARTS or "text" not in part:
        raise RowFault(UNSUPPORTED_FIELD, f"{name} of type {kind or ', '.join(map(str, part))}, and only text is read")
    return part["text"] if isinstance(part["text"], str) else verbatim(part["text"], name, if_empty)


def thinking_text(value: Any, name: str) -> str:
    """Return the text of the thinking parts of a content, as Anthropic and Gemini write them, or "".

    Raises:
        RowFault: a part is redacted, or has no text.
    """
    texts = []
    for part in value if isinstance(value, list) else ():
        if isinstance(part, dict) and _is_thinking(part):
            kind = part.get("type") or "text"
            texts.append(verbatim(part.get(kind, part.get("text")), f"{kind} of {name}", EMPTY_COMPLETION))
    return "".join(texts)


def _is_thinking(part: Mapping[str, Any]) -> bool:
    """Return whether a part holds what the model thinks; Gemini marks a text with ``thought: true``."""
    return part.get("type") in _THINKING or (part.get("thought") is True and "text" in part)


def optional_text(value: Any, name: str) -> str:
    """Return a content as ``content_text`` does, or "" for null and for a blank or empty one.

    Gemini writes the system text as an object with ``parts``.
    """
    if isinstance(value, dict) and isinstance(value.get("parts"), list):
        value = value["parts"]
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return ""
    return content_text(value, name, EMPTY_PROMPT)


def excerpt_of(value: Any) -> str:
    """Return the type of a value and the start of its text."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


def _check_unicode(value: str, name: str) -> None:
    """Raise for half of a surrogate pair, which JSON may hold and no tokenizer accepts."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowFault(BROKEN_UNICODE, f"{name} holds {value[error.start]!r}") from error
