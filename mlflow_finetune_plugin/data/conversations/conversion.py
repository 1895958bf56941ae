"""Convert rows to conversations.

Texts are used verbatim: the model trains on what the file holds, blanks included. A row with several answers (a list of
outputs, nested instances) becomes several conversations, which all go to the same side of the split. Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlflow_finetune_plugin.data.conversations.layouts import Layout
from mlflow_finetune_plugin.data.conversations.row_faults import (
    BROKEN_UNICODE,
    EMPTY_COMPLETION,
    EMPTY_PROMPT,
    EMPTY_TEXT,
    ENDS_WITH_USER_TURN,
    MISSING_FIELD,
    NO_ASSISTANT_TURN,
    NULL_FIELD,
    ROLES_OUT_OF_ORDER,
    UNSUPPORTED_FIELD,
    UNSUPPORTED_ROLE,
    WRONG_TYPE,
    RowFault,
)
from mlflow_finetune_plugin.evaluation.results import Message


@dataclass(frozen=True, slots=True)
class Conversation:
    """An optional system turn, then user and assistant in turn, the assistant last. No text is empty.

    A document of plain text is a single assistant turn without a question. ``developer_turns`` counts the developer turns
    that were read as system turns.
    """

    messages: tuple[Message, ...]
    developer_turns: int = 0


def is_document(messages: Sequence[Message]) -> bool:
    """Return whether these turns are one document of plain text."""
    return len(messages) == 1 and messages[0]["role"] == "assistant"


def to_conversations(layout: Layout, row: Mapping[str, Any]) -> list[Conversation]:
    """Return the conversations of ``row``.

    Raises:
        RowFault: one of them cannot be used for training.
    """
    if layout.name == "instances":
        return _instances(layout, row)
    answer = ANSWERS.get(layout.name)
    answers = row.get(layout.columns[answer]) if answer else None
    if isinstance(answers, list) and layout.name != "label":
        return _several_answers(layout, row, layout.columns[str(answer)], answers)
    return [_conversation(layout, row)]


def to_conversation(layout: Layout, row: Mapping[str, Any]) -> Conversation:
    """Return the only conversation of a row that holds exactly one."""
    (only,) = to_conversations(layout, row)
    return only


def instructed(conversation: Conversation, instruction: str | None) -> Conversation:
    """Return the conversation with ``instruction`` and a blank line before its first user turn; None changes nothing."""
    if instruction is None:
        return conversation
    messages = list(conversation.messages)
    first = next(index for index, message in enumerate(messages) if message["role"] == "user")
    messages[first] = {**messages[first], "content": f"{instruction}\n\n{messages[first]['content']}"}
    return replace(conversation, messages=tuple(messages))


def _conversation(layout: Layout, row: Mapping[str, Any]) -> Conversation:
    developers = 0
    if layout.name in ("messages", "conversational"):
        turns = [turn for column in layout.columns.values() for turn in row.get(column) or () if isinstance(turn, dict)]
        developers = sum(turn.get("role") == "developer" for turn in turns)
    return Conversation(_BUILDERS[layout.name](layout, row), developers)


def _several_answers(layout: Layout, row: Mapping[str, Any], column: str, answers: list[Any]) -> list[Conversation]:
    if not answers:
        raise RowFault(EMPTY_COMPLETION, column)
    return _each([(layout, {**row, column: answer}) for answer in answers], column)


def _instances(layout: Layout, row: Mapping[str, Any]) -> list[Conversation]:
    """Read a row of self-instruct (arXiv 2212.10560): an instruction with a list of {input, output} objects."""
    nested = _list(layout, row, "instances")
    if not nested:
        raise RowFault(EMPTY_COMPLETION, layout.columns["instances"])
    flat = Layout("alpaca", {"instruction": layout.columns["instruction"], "input": "input", "output": "output"})
    for instance in nested:
        if not isinstance(instance, dict):
            raise RowFault(WRONG_TYPE, f"an instance is {_excerpt(instance)}, not an object")
    return _each([(flat, {**row, "input": None, **instance}) for instance in nested], layout.columns["instances"])


def _each(rows: list[tuple[Layout, Mapping[str, Any]]], what: str) -> list[Conversation]:
    conversations = []
    for number, (layout, row) in enumerate(rows, start=1):
        try:
            conversations.append(_conversation(layout, row))
        except RowFault as fault:
            if len(rows) == 1:
                raise
            raise RowFault(fault.reason, f"{what} {number}: {fault.detail}") from fault
    return conversations


def _document(layout: Layout, row: Mapping[str, Any]) -> tuple[Message, ...]:
    return (_message("assistant", _text(_field(layout, row, "text"), layout.columns["text"], EMPTY_TEXT)),)


def _prompt_completion(layout: Layout, row: Mapping[str, Any]) -> tuple[Message, ...]:
    prompt, completion = _field(layout, row, "prompt"), _field(layout, row, "completion")
    return (
        *_system(layout, row),
        _message("user", _text(prompt, layout.columns["prompt"], EMPTY_PROMPT)),
        _message("assistant", _text(completion, layout.columns["completion"], EMPTY_COMPLETION)),
    )


def _label(layout: Layout, row: Mapping[str, Any]) -> tuple[Message, ...]:
    text = _text(_field(layout, row, "text"), layout.columns["text"], EMPTY_PROMPT)
    label = _label_text(_field(layout, row, "label"), layout.columns["label"])
    return (*_system(layout, row), _message("user", text), _message("assistant", label))


def _label_text(value: Any, column: str) -> str:
    """Return the label as text: digits for a whole number, ``true`` or ``false`` for a boolean."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and math.isnan(value):
        raise RowFault(NULL_FIELD, column)
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    return _text(value, column, EMPTY_COMPLETION)


def _alpaca(layout: Layout, row: Mapping[str, Any]) -> tuple[Message, ...]:
    """Join instruction and input with a blank line into one user turn, after the turns of the history."""
    instruction = _text(_field(layout, row, "instruction"), layout.columns["instruction"], EMPTY_PROMPT)
    context = _optional(layout, row, "input")
    output = _text(_field(layout, row, "output"), layout.columns["output"], EMPTY_COMPLETION)
    question = f"{instruction}\n\n{context}" if context else instruction
    return (
        *_system(layout, row),
        *_history(layout, row),
        _message("user", question),
        _message("assistant", output),
    )


def _history(layout: Layout, row: Mapping[str, Any]) -> list[Message]:
    turns = row.get(layout.columns["history"]) if "history" in layout.columns else None
    if turns is None:
        return []
    if not isinstance(turns, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
        raise RowFault(WRONG_TYPE, "history is not a list of [user, assistant] pairs")
    messages = []
    for user, assistant in turns:
        messages.append(_message("user", _text(user, "history", EMPTY_PROMPT)))
        messages.append(_message("assistant", _text(assistant, "history", EMPTY_COMPLETION)))
    return messages


def _messages(layout: Layout, row: Mapping[str, Any]) -> tuple[Message, ...]:
    # A template writes tools into the prompt, so a row without them would be a different task.
    for key in ("tools", "functions"):
        if row.get(key):
            raise RowFault(UNSUPPORTED_FIELD, key)
    return _in_turn([_role_message(turn) for turn in _list(layout, row, "messages")])


def _conversational(layout: Layout, row: Mapping[str, Any]) -> tuple[Message, ...]:
    prompt, completion = _list(layout, row, "prompt"), _list(layout, row, "completion")
    if not prompt:
        raise RowFault(EMPTY_PROMPT, layout.columns["prompt"])
    if not completion:
        raise RowFault(EMPTY_COMPLETION, layout.columns["completion"])
    return _in_turn([_role_message(turn) for turn in (*prompt, *completion)])


_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_SHAREGPT_ROLES = {**_ROLES, "human": "user", "gpt": "assistant"}
_UNSUPPORTED_KEYS = ("reasoning_content", "reasoning", "thinking", "audio", "refusal")


def _role_message(turn: Any) -> Message:
    role = _role(turn, "role", _ROLES)
    for key in ("tool_calls", "function_call"):
        if turn.get(key):
            raise RowFault(UNSUPPORTED_ROLE, f"{role} with {key}")
    for key in _UNSUPPORTED_KEYS:
        if turn.get(key):
            raise RowFault(UNSUPPORTED_FIELD, key)
    # OpenAI's format marks turns that carry no loss with weight 0; ignoring it would train on them.
    if turn.get("weight") not in (None, 1):
        raise RowFault(UNSUPPORTED_FIELD, f"weight {turn['weight']!r}")
    return _message(role, _turn_text(turn, "content", role))


def _sharegpt(layout: Layout, row: Mapping[str, Any]) -> tuple[Message, ...]:
    turns = []
    for turn in _list(layout, row, "conversations"):
        role = _role(turn, "from", _SHAREGPT_ROLES)
        turns.append(_message(role, _turn_text(turn, "value", role)))
    return _in_turn([*_system(layout, row), *turns])


def _role(turn: Any, key: str, roles: Mapping[str, str]) -> str:
    if not isinstance(turn, dict):
        raise RowFault(WRONG_TYPE, f"a turn is {_excerpt(turn)}, not an object")
    if key not in turn:
        raise RowFault(MISSING_FIELD, key)
    role = turn[key]
    if role is None:
        raise RowFault(NULL_FIELD, key)
    if not isinstance(role, str) or role not in roles:
        raise RowFault(UNSUPPORTED_ROLE, _excerpt(role))
    return roles[role]


def _turn_text(turn: Mapping[str, Any], key: str, role: str) -> str:
    if key not in turn:
        raise RowFault(MISSING_FIELD, key)
    return _text(turn[key], key, EMPTY_COMPLETION if role == "assistant" else EMPTY_PROMPT)


def _in_turn(messages: list[Message]) -> tuple[Message, ...]:
    """Check that the roles are [system] user assistant user assistant ... with the assistant last."""
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise RowFault(NO_ASSISTANT_TURN, " ".join(roles))
    turns = roles[1:] if roles[0] == "system" else roles
    for position, role in enumerate(turns):
        if role != ("user", "assistant")[position % 2]:
            raise RowFault(ROLES_OUT_OF_ORDER, " ".join(roles))
    if turns[-1] == "user":
        raise RowFault(ENDS_WITH_USER_TURN, " ".join(roles))
    return tuple(messages)


ANSWERS = {"alpaca": "output", "prompt_completion": "completion"}
"""The part of a layout that may hold a list of answers. Each answer becomes a conversation."""

_BUILDERS: dict[str, Callable[[Layout, Mapping[str, Any]], tuple[Message, ...]]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "conversational": _conversational,
    "prompt_completion": _prompt_completion,
    "label": _label,
    "text": _document,
}


def _field(layout: Layout, row: Mapping[str, Any], part: str) -> Any:
    column = layout.columns[part]
    if column not in row:
        raise RowFault(MISSING_FIELD, column)
    if row[column] is None:
        raise RowFault(NULL_FIELD, column)
    return row[column]


def _list(layout: Layout, row: Mapping[str, Any], part: str) -> list[Any]:
    value = _field(layout, row, part)
    if not isinstance(value, list):
        raise RowFault(WRONG_TYPE, f"{layout.columns[part]} is {_excerpt(value)}, not a list")
    return value


def _optional(layout: Layout, row: Mapping[str, Any], part: str) -> str:
    """Return the text of an optional part, or "" where the row has no such column, null or a blank text."""
    column = layout.columns.get(part)
    value = row.get(column) if column else None
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    return _text(value, str(column), EMPTY_PROMPT)


def _system(layout: Layout, row: Mapping[str, Any]) -> list[Message]:
    text = _optional(layout, row, "system")
    return [_message("system", text)] if text else []


def _text(value: Any, name: str, if_empty: str) -> str:
    if value is None:
        raise RowFault(NULL_FIELD, name)
    if not isinstance(value, str):
        raise RowFault(WRONG_TYPE, f"{name} is {_excerpt(value)}, not text")
    if not value.strip():
        raise RowFault(if_empty, name)
    if not value.isascii():
        _check_unicode(value, name)
    return value


def _check_unicode(value: str, name: str) -> None:
    """Raise for half of a surrogate pair, which JSON may hold and no tokenizer accepts."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowFault(BROKEN_UNICODE, f"{name} holds {value[error.start]!r}") from error


def _excerpt(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
