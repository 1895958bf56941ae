"""Convert rows to conversations.

Texts are used verbatim: the model trains on what the file holds, blanks included. A row with several answers (a list of
outputs, nested instances) becomes several conversations, which all go to the same side of the split. Standard library only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlflow_finetune_plugin.data.conversations.chat_turns import (
    as_context,
    in_turn,
    is_learnt,
    role_turn,
    sharegpt_turn,
    with_tools,
)
from mlflow_finetune_plugin.data.conversations.layouts import Layout
from mlflow_finetune_plugin.data.conversations.row_faults import (
    EMPTY_COMPLETION,
    EMPTY_PROMPT,
    EMPTY_TEXT,
    MISSING_FIELD,
    NULL_FIELD,
    UNSUPPORTED_FIELD,
    WRONG_TYPE,
    RowFault,
)
from mlflow_finetune_plugin.data.conversations.row_marks import ROW_MARKS, check_markers, check_row_marks
from mlflow_finetune_plugin.data.conversations.texts import excerpt_of, optional_text, verbatim
from mlflow_finetune_plugin.data.conversations.tool_calls import TOOL_COLUMNS, tools_of
from mlflow_finetune_plugin.evaluation.results import Message


@dataclass(frozen=True, slots=True)
class Conversation:
    """The turns of one conversation. The last is an assistant turn that the model learns, and no text is empty.

    A document of plain text is a single assistant turn without a question; every other conversation has a user turn.
    ``developer_turns`` counts the developer turns that were read as system turns. ``group`` is the row's value in the column
    ``data.group``. ``is_written`` says that the answer is a number, a boolean or an object, which was written as text.
    """

    messages: tuple[Message, ...]
    developer_turns: int = 0
    group: str | None = None
    is_written: bool = False

    @property
    def context_answers(self) -> int:
        """The number of assistant turns that carry no loss."""
        return sum(turn["role"] == "assistant" and not is_learnt(turn) for turn in self.messages)

    @property
    def reasoning_turns(self) -> int:
        """The number of turns with what the model thought before it answered."""
        return sum("reasoning_content" in turn for turn in self.messages)

    @property
    def thinking_turns(self) -> int:
        """The number of those, and of turns whose answer contains a think block."""
        return sum(map(thinks, self.messages))


def thinks(message: Message) -> bool:
    """Return whether an assistant turn holds what the model thought, in a field or in a think block of its content."""
    return message["role"] == "assistant" and ("reasoning_content" in message or "</think>" in message["content"])


def is_document(messages: Sequence[Message]) -> bool:
    """Return whether these turns are one document of plain text."""
    return len(messages) == 1 and messages[0]["role"] == "assistant"


def to_conversations(layout: Layout, row: Mapping[str, Any]) -> list[Conversation]:
    """Return the conversations of ``row``.

    Raises:
        RowFault: one of them cannot be used for training.
    """
    _check_fields(layout, row)
    if layout.name == "instances":
        return _instances(layout, row)
    answer = ANSWERS.get(layout.name)
    answers = row.get(layout.columns[answer]) if answer else None
    if isinstance(answers, dict) and isinstance(
        answers.get("text"), list
    ):  # SQuAD: the same answer at several positions
        answers = list(dict.fromkeys(answers["text"]))
    if isinstance(answers, list) and layout.name != "label":
        return _several_answers(layout, row, layout.columns[str(answer)], answers)
    return [_conversation(layout, row)]


def _check_fields(layout: Layout, row: Mapping[str, Any]) -> None:
    """Raise for a part of the row that the model would have to read and that no layout can use."""
    for column, reason in _UNSUPPORTED_COLUMNS.items():
        if row.get(column) and column not in layout.columns.values():
            raise _unsupported(column, reason)
    if row.keys() & ROW_MARKS:
        check_row_marks(row, set(layout.columns.values()))
    if layout.name not in CHATS:
        for column in TOOL_COLUMNS:
            if row.get(column) and column not in layout.columns.values():
                raise _unsupported(column, _TOOLS)


def _unsupported(column: str, reason: str) -> RowFault:
    return RowFault(UNSUPPORTED_FIELD, f"{column}: {reason}; data.ignore: [{column}] trains without it")


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
    answer = row.get(layout.columns[ANSWERS[layout.name]]) if layout.name in ANSWERS else ""
    return Conversation(_BUILDERS[layout.name](layout, row), developers, is_written=not isinstance(answer, str))


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
            raise RowFault(WRONG_TYPE, f"an instance is {excerpt_of(instance)}, not an object")
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
    return (_message("assistant", verbatim(_field(layout, row, "text"), layout.columns["text"], EMPTY_TEXT)),)


def _prompt_completion(layout: Layout, row: Mapping[str, Any]) -> tuple[Message, ...]:
    prompt, completion = _field(layout, row, "prompt"), _field(layout, row, "completion")
    check_markers(prompt, layout.columns["prompt"])
    return (
        *_system(layout, row),
        _message("user", verbatim(prompt, layout.columns["prompt"], EMPTY_PROMPT)),
        _message("assistant", _answer_text(completion, layout.columns["completion"])),
    )


def _label(layout: Layout, row: Mapping[str, Any]) -> tuple[Message, ...]:
    text = verbatim(_field(layout, row, "text"), layout.columns["text"], EMPTY_PROMPT)
    label = _plain_text(_field(layout, row, "label"), layout.columns["label"])
    return (*_system(layout, row), _message("user", text), _message("assistant", label))


def _answer_text(value: Any, column: str) -> str:
    """Return an answer as text: as ``_plain_text`` does, a fraction by its digits, and an object as JSON."""
    if isinstance(value, dict) and value:
        return json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, float) and math.isfinite(value) and not value.is_integer():
        return str(value)
    return _plain_text(value, column)


def _plain_text(value: Any, column: str) -> str:
    """Return a value as text: digits for a whole number, ``true`` or ``false`` for a boolean."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and math.isnan(value):
        raise RowFault(NULL_FIELD, column)
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    return verbatim(value, column, EMPTY_COMPLETION)


def _alpaca(layout: Layout, row: Mapping[str, Any]) -> tuple[Message, ...]:
    """Join instruction and input with a blank line into one user turn, after the turns of the history."""
    instruction = verbatim(_field(layout, row, "instruction"), layout.columns["instruction"], EMPTY_PROMPT)
    context = _optional(layout, row, "input")
    output = _answer_text(_field(layout, row, "output"), layout.columns["output"])
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
        messages.append(_message("user", verbatim(user, "history", EMPTY_PROMPT)))
        messages.append(_message("assistant", verbatim(assistant, "history", EMPTY_COMPLETION)))
    return messages


def _messages(layout: Layout, row: Mapping[str, Any]) -> tuple[Message, ...]:
    turns = in_turn(_after_system(layout, row, map(role_turn, _list(layout, row, "messages"))))
    return with_tools(turns, tools_of(row))


def _conversational(layout: Layout, row: Mapping[str, Any]) -> tuple[Message, ...]:
    prompt, completion = _list(layout, row, "prompt"), _list(layout, row, "completion")
    if not prompt:
        raise RowFault(EMPTY_PROMPT, layout.columns["prompt"])
    if not completion:
        raise RowFault(EMPTY_COMPLETION, layout.columns["completion"])
    # As in TRL, the turns of the prompt are context, and the model learns those of the completion.
    context = [as_context(role_turn(turn)) for turn in prompt]
    return with_tools(in_turn([*context, *map(role_turn, completion)]), tools_of(row))


def _sharegpt(layout: Layout, row: Mapping[str, Any]) -> tuple[Message, ...]:
    turns = in_turn(_after_system(layout, row, map(sharegpt_turn, _list(layout, row, "conversations"))))
    return with_tools(turns, tools_of(row))


def _after_system(layout: Layout, row: Mapping[str, Any], turns: Iterable[Message]) -> list[Message]:
    """Return the turns after the text of the system column, unless they start with the same text."""
    messages, system = list(turns), _system(layout, row)
    return messages if messages[:1] == system else [*system, *messages]


_NOT_TEXT = "this version trains on text only"
_TOOLS = "only rows of turns can have tools, as messages or ShareGPT"
_UNSUPPORTED_COLUMNS = {
    **dict.fromkeys(
        ("images", "image", "image_path", "image_paths", "videos", "video", "audios", "audio", "audio_path"), _NOT_TEXT
    ),
}

CHATS = ("messages", "sharegpt", "conversational")
"""The layouts whose rows are turns. Only they can have tools."""

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
        raise RowFault(WRONG_TYPE, f"{layout.columns[part]} is {excerpt_of(value)}, not a list")
    return value


def _optional(layout: Layout, row: Mapping[str, Any], part: str) -> str:
    """Return the text of an optional part, or "" where the row has no such column, null or a blank text."""
    column = layout.columns.get(part)
    return optional_text(row.get(column), column) if column else ""


def _system(layout: Layout, row: Mapping[str, Any]) -> list[Message]:
    text = _optional(layout, row, "system")
    return [_message("system", text)] if text else []


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
