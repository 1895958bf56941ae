"""Refuse turns with a field that has a meaning in another tool and none here, and count the other fields that are not read.

Such a field changes what the model reads or learns: Cohere's plan before a call, the name of a speaker, an answer that
continues a prefix. Ignoring it would train on another conversation than the one in the file. ``data.ignore`` and the report
name a field of turns as ``[].name``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from mlflow_finetune_plugin.data.conversations.row_faults import UNSUPPORTED_FIELD, RowFault
from mlflow_finetune_plugin.data.conversations.texts import REASONING_FIELDS, excerpt_of

OF_TURNS = "[]."
"""What the name of a field of turns begins with, among the names of columns."""

_ONE_ANSWER = "a turn is read as one answer"
_NO_MEDIA = "this version trains on text and pictures only"
_REASONS = {
    **dict.fromkeys(("audio", "videos", "audios"), _NO_MEDIA),
    "images": "write each picture as a part of the content, or all of them into the column images of the row",
    **dict.fromkeys(("chosen", "rejected", "candidates"), _ONE_ANSWER),
    "refusal": "write it as the content of the turn",
    "tool_plan": "Cohere's plan before a call; write it into the content, or as reasoning_content",
    "thought": "write it as reasoning_content",
    "prefix": "the start of an answer, which Mistral does not learn; write the whole answer",
    "eot": "a turn without an end (torchtune), and every answer ends here",
    "ipython": "a tool call (torchtune); write it as tool_calls",
    "label": "the attributes of an answer, which NeMo writes into its prompt",
    "name": "the speaker, whom chat templates do not write; write it into the content",
}
"""Why a field that says something cannot be used."""
_READ = frozenset(
    (
        *("role", "content", "parts", "from", "value", "tool_calls", "tool_call_id", "function_call"),
        *("weight", "loss_scale", "loss_weight", "loss_mask", "train", "training", "trainable", "loss", "masked"),
        *("train_detail", "training_detail", *REASONING_FIELDS),
    )
)
"""The fields that are read elsewhere."""


def check_turn_fields(turn: Mapping[str, Any], role: str) -> None:
    """Raise RowFault for a field of a turn that has a meaning in another tool and none here."""
    for key in turn.keys() - _READ:
        if key in _REASONS and _has_effect(key, turn, role):
            raise RowFault(
                UNSUPPORTED_FIELD,
                f"{key} {excerpt_of(turn[key])} of {'an' if role == 'assistant' else 'a'} {role} turn: {_REASONS[key]}; "
                f"data.ignore: ['{OF_TURNS}{key}'] trains without it",
            )


def _has_effect(key: str, turn: Mapping[str, Any], role: str) -> bool:
    value = turn[key]
    if key == "eot":
        return value is False
    if key == "name":  # the name of a tool is read, and one that repeats the role says nothing
        repeats = (role, str(turn.get("role", turn.get("from"))).lower())
        return bool(value) and role != "tool" and str(value).lower() not in repeats
    if key in ("label", "thought", "candidates"):
        return bool(value) and role == "assistant"
    return bool(value)


def without_fields(row: Mapping[str, Any], ignore: Collection[str]) -> Mapping[str, Any]:
    """Return the row without the fields of turns that ``ignore`` names."""
    ignored = {name.removeprefix(OF_TURNS) for name in ignore if name.startswith(OF_TURNS)}
    if not ignored:
        return row
    return {column: _without_fields(value, ignored) for column, value in row.items()}


def _without_fields(value: Any, ignored: Collection[str]) -> Any:
    """Return the turns of a column without these fields: a list of turns, one turn, or an object with ``messages``."""
    if isinstance(value, list):
        return [_without(turn, ignored) for turn in value]
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("messages"), list):
        return {**value, "messages": _without_fields(value["messages"], ignored)}
    return _without(value, ignored) if value.keys() & {"role", "from"} else value


def _without(turn: Any, ignored: Collection[str]) -> Any:
    return {key: value for key, value in turn.items() if key not in ignored} if isinstance(turn, dict) else turn


def unread_fields(turns: Any) -> Iterator[str]:
    """Yield the names of the fields with a value that no turn's reader reads, each once.

    ``turns`` is a list of turns, one turn, or an object with ``messages``. Anything else has no fields.
    """
    if isinstance(turns, dict):
        turns = turns.get("messages", [turns] if turns.keys() & {"role", "from"} else None)
    if isinstance(turns, list):
        yield from {
            f"{OF_TURNS}{key}"
            for turn in turns
            if isinstance(turn, dict)
            for key in turn.keys() - _READ - _REASONS.keys()
            if turn[key] not in (None, "", [], {})
        }
