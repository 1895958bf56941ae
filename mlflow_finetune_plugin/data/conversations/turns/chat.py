"""Read the turns of a chat: their roles, their texts, and the marks of turns that the model must not learn.

A marked assistant turn stays in the conversation as context and carries no loss. Each tool marks it in another way: OpenAI,
Mistral and Together with ``weight: 0``, Axolotl with ``train: false`` or ``training: false``, ms-swift with ``loss: false`` or
``loss_scale: 0``, tinker-cookbook with ``trainable: false``, torchtune with ``masked: true``, others with ``loss_mask: 0``. A mark with a value between, or one for a part of a turn, is a fault: ignoring it would train on texts that
the file excludes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_finetune_plugin.data.conversations.row_faults import (
    EMPTY_COMPLETION,
    EMPTY_PROMPT,
    ENDS_WITH_USER_TURN,
    MISSING_FIELD,
    NO_ASSISTANT_TURN,
    NO_LEARNT_TURN,
    NULL_FIELD,
    ROLES_OUT_OF_ORDER,
    UNSUPPORTED_FIELD,
    UNSUPPORTED_ROLE,
    WRONG_TYPE,
    RowFault,
)
from mlflow_finetune_plugin.data.conversations.texts import (
    REASONING_FIELDS,
    content_text,
    excerpt_of,
    optional_text,
    thinking_text,
)
from mlflow_finetune_plugin.data.conversations.turns.fields import check_turn_fields
from mlflow_finetune_plugin.data.conversations.turns.picture_parts import content_with_pictures, has_pictures
from mlflow_finetune_plugin.data.conversations.turns.tool_calls import calls_of, named_calls
from mlflow_finetune_plugin.evaluation.results import Message
from mlflow_finetune_plugin.images.turns import PICTURES

_WEIGHT = "weight"
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_ROLES |= {"model": "assistant", "chatbot": "assistant"}  # Gemini's and Cohere's names
_SHAREGPT_ROLES = {**_ROLES, "human": "user", "gpt": "assistant", "bot": "assistant"}
_TOOL_ROLES = {"tool": "tool", "function": "tool", "ipython": "tool"}
_FUNCTION_CALL, _OBSERVATION = "function_call", "observation"  # LLaMA-Factory's roles
_NUMBERS = ("weight", "loss_scale", "loss_weight", "loss_mask")
_SWITCHES = ("train", "training", "trainable", "loss")
_PARTIAL = ("train_detail", "training_detail")
_MASKED = "masked"


def is_learnt(message: Message) -> bool:
    """Return whether the model learns this turn: an assistant turn that the file does not exclude."""
    return message["role"] == "assistant" and _WEIGHT not in message


def unmarked(messages: Sequence[Message]) -> list[Message]:
    """Return the messages as a chat template reads them, without the marks of excluded turns."""
    return [
        {key: value for key, value in message.items() if key != _WEIGHT} if _WEIGHT in message else message
        for message in messages
    ]


def whole_text(message: Message) -> str:
    """Return all that a turn says as one text: its content, reasoning, calls, tools and the names of its pictures.

    Equal turns have equal texts.
    """
    parts = {key: message[key] for key in ("reasoning_content", "tool_calls", "tools", PICTURES) if key in message}
    return message["content"] + json.dumps(parts, ensure_ascii=False, sort_keys=True) if parts else message["content"]


def with_tools(messages: Sequence[Message], tools: list[dict[str, Any]]) -> tuple[Message, ...]:
    """Return the turns, with the tools of the conversation at the first one (see ``evaluation.results.Message``)."""
    return ({**messages[0], "tools": tools}, *messages[1:]) if tools else tuple(messages)


def as_context(message: Message) -> Message:
    """Return an assistant turn that carries no loss. Other turns never carry any, and stay as they are."""
    return {**message, _WEIGHT: "0"} if message["role"] == "assistant" else message


def role_turn(turn: Any) -> Message:
    """Read a turn of the form ``{"role": ..., "content": ...}``; Gemini calls the content ``parts``."""
    role = _role(turn, "role", _ROLES | _TOOL_ROLES)
    return _turn(turn, role, "parts" if "parts" in turn and "content" not in turn else "content")


def sharegpt_turn(turn: Any) -> Message:
    """Read a turn of the form ``{"from": ..., "value": ...}``."""
    roles = {**_SHAREGPT_ROLES, **_TOOL_ROLES, _FUNCTION_CALL: "assistant", _OBSERVATION: "tool"}
    role = _role(turn, "from", roles)
    if turn["from"].lower() == _FUNCTION_CALL:
        check_turn_fields(turn, role)
        calls = named_calls(_content(turn, "value", role))
        return _marked(turn, {"role": role, "content": "", "tool_calls": calls})
    return _turn(turn, role, "value")


def _turn(turn: Mapping[str, Any], role: str, key: str) -> Message:
    """Read a turn of this role whose content is under ``key``."""
    check_turn_fields(turn, role)
    calls = calls_of(turn)
    if calls and role != "assistant":
        raise RowFault(UNSUPPORTED_FIELD, f"tool_calls in a {role} turn: only assistant turns call tools")
    if calls and optional_text(turn.get(key), key) == "":
        message: Message = {"role": role, "content": ""}
    elif has_pictures(turn.get(key)):
        message = {"role": role, **content_with_pictures(turn[key], key, role)}
    else:
        message = {"role": role, "content": _content(turn, key, role)}
    if calls:
        message["tool_calls"] = calls
    if role == "assistant" and (reasoning := _reasoning(turn, key)):
        message["reasoning_content"] = reasoning
    if role == "tool":
        message |= {key: turn[key] for key in ("name", "tool_call_id") if isinstance(turn.get(key), str)}
    return _marked(turn, message)


def in_turn(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return the conversation up to the last turn that the model learns.

    An assistant turn before the first user turn answers nothing, so it is context. Whether roles may follow each other in
    another order than user, assistant, user, assistant is up to the chat template, which renders the conversation later.

    Raises:
        RowFault: the conversation has no turn to learn, or does not end with the assistant.
    """
    roles = [message["role"] for message in messages]
    shown = " ".join(roles)
    if "assistant" not in roles:
        raise RowFault(NO_ASSISTANT_TURN, shown)
    if roles[-1] == "user":
        raise RowFault(ENDS_WITH_USER_TURN, shown)
    if roles[-1] != "assistant" or "user" not in roles:
        raise RowFault(ROLES_OUT_OF_ORDER, shown)
    first_user = roles.index("user")
    turns = [*map(as_context, messages[:first_user]), *messages[first_user:]]
    learnt = [position for position, message in enumerate(turns) if is_learnt(message)]
    if not learnt:
        raise RowFault(NO_LEARNT_TURN, shown)
    return tuple(turns[: learnt[-1] + 1])


def _role(turn: Any, key: str, roles: Mapping[str, str]) -> str:
    if not isinstance(turn, dict):
        raise RowFault(WRONG_TYPE, f"a turn is {excerpt_of(turn)}, not an object")
    if key not in turn:
        raise RowFault(MISSING_FIELD, key)
    role = turn[key]
    if role is None:
        raise RowFault(NULL_FIELD, key)
    name = role.lower() if isinstance(role, str) else ""
    if name not in roles:
        raise RowFault(UNSUPPORTED_ROLE, excerpt_of(role))
    return roles[name]


def _reasoning(turn: Mapping[str, Any], content: str) -> str:
    """Return the text that the model thinks before it answers: a field of the turn, or thinking parts of its content."""
    texts = [optional_text(turn.get(key), key) for key in REASONING_FIELDS]
    return next((text for text in texts if text), "") or thinking_text(turn.get(content), content)


def _content(turn: Mapping[str, Any], key: str, role: str) -> str:
    if key not in turn:
        raise RowFault(MISSING_FIELD, key)
    return content_text(turn[key], key, EMPTY_COMPLETION if role == "assistant" else EMPTY_PROMPT)


def _marked(turn: Mapping[str, Any], message: Message) -> Message:
    return as_context(message) if _is_excluded(turn, message["role"]) else message


def _is_excluded(turn: Mapping[str, Any], role: str) -> bool:
    is_excluded = role == "assistant" and _is_masked(turn)
    for key in _PARTIAL:
        if turn.get(key):
            raise RowFault(UNSUPPORTED_FIELD, f"{key}: only whole turns can be left out of the loss")
    for key in (*_NUMBERS, *_SWITCHES):
        value = turn.get(key)
        if value is None:
            continue
        if value not in (0, 1):  # True and False are equal to 1 and 0
            raise RowFault(UNSUPPORTED_FIELD, f"{key} {value!r}: a turn carries loss (1, true) or none (0, false)")
        if role == "assistant":
            is_excluded = is_excluded or not value
        elif value and key in ("train", "training", "trainable"):
            raise RowFault(UNSUPPORTED_FIELD, f"{key} true in a {role} turn: only assistant turns can be trained on")
    return is_excluded


def _is_masked(turn: Mapping[str, Any]) -> bool:
    value = turn.get(_MASKED)
    if value not in (None, 0, 1):
        raise RowFault(UNSUPPORTED_FIELD, f"{_MASKED} {value!r}: a turn carries loss (false) or none (true)")
    return bool(value)
