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

from mlflow_finetune_plugin.data.conversations.layouts import ROW_FORM_LAYOUTS, Layout
from mlflow_finetune_plugin.data.conversations.pictures import refuse_pictures, with_pictures
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
from mlflow_finetune_plugin.data.conversations.turns.chat import (
    as_context,
    in_turn,
    is_learnt,
    role_turn,
    sharegpt_turn,
    with_tools,
)
from mlflow_finetune_plugin.data.conversations.turns.tool_calls import TOOL_COLUMNS, tools_of
from mlflow_finetune_plugin.evaluation.results import Message
from mlflow_finetune_plugin.images.turns import MARK


@dataclass(frozen=True, slots=True)
class Conversation:
    """The turns of one conversation. The last is an assistant turn that the model learns, and no text is empty.

    A document of plain text is a single assistant turn without a question; every other conversation has a user turn.
    ``rejected`` are the same turns with the worse answer, in rows of pairs. ``is_good`` is the rating, in rated rows.
    ``margin`` says how much better the answer of a pair is, where the row has it. ``fields`` is a JSON object of the row's
    other columns, in rows of prompts, whose ``messages`` end before the answer. ``developer_turns`` counts the developer turns
    that were read as system turns. ``group`` is the row's value in the column ``data.group``. ``is_written`` says that the
    answer is a number, a boolean or an object, which was written as text.
    """

    messages: tuple[Message, ...]
    developer_turns: int = 0
    group: str | None = None
    is_written: bool = False
    rejected: tuple[Message, ...] = ()
    is_good: bool | None = None
    margin: float | None = None
    fields: str = ""

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


def check_fields(layout: Layout, row: Mapping[str, Any]) -> None:
    """Raise RowFault for a part of a pair or of a rated answer that the model would have to read and that no layout can use."""
    refuse_pictures(row, layout.columns.values())
    _check_fields(layout, row)


def _check_fields(layout: Layout, row: Mapping[str, Any]) -> None:
    check_media(layout, row)
    if row.keys() & ROW_MARKS:
        check_row_marks(row, set(layout.columns.values()))
    if layout.name not in CHATS:
        for column in TOOL_COLUMNS:
            if row.get(column) and column not in layout.columns.values():
                raise _unsupported(column, _TOOLS)


def check_media(layout: Layout, row: Mapping[str, Any]) -> None:
    """Raise RowFault for a row with videos or audio, which no layout can use."""
    for column, reason in _UNSUPPORTED_COLUMNS.items():
        if row.get(column) and column not in layout.columns.values():
            raise _unsupported(column, reason)


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
    sides = [_instructed(turns, instruction) for turns in (conversation.messages, conversation.rejected)]
    return replace(conversation, messages=sides[0], rejected=sides[1])


def _instructed(turns: Sequence[Message], instruction: str) -> tuple[Message, ...]:
    messages = list(turns)
    first = next((index for index, message in enumerate(messages) if message["role"] == "user"), None)
    if first is not None:
        messages[first] = {
            **messages[first],
            "content": f"{instruction.replace(MARK, '')}\n\n{messages[first]['content']}",
        }
    return tuple(messages)


def _conversation(layout: Layout, row: Mapping[str, Any]) -> Conversation:
    developers = developer_turns(row.get(column) for column in layout.columns.values()) if layout.name in CHATS else 0
    answer = row.get(layout.columns[ANSWERS[layout.name]]) if layout.name in ANSWERS else ""
    turns = _BUILDERS[layout.name](layout, row)
    if layout.name not in CHATS:
        turns = tuple(with_pictures(turns, row, layout.columns.values()))
    return Conversation(turns, developers, is_written=not isinstance(answer, str))


def developer_turns(values: Iterable[Any]) -> int:
    """Return the number of developer turns in lists of turns. They are read as system turns."""
    turns = [turn for value in values if isinstance(value, list) for turn in value if isinstance(turn, dict)]
    return sum(str(turn.get("role", turn.get("from"))).lower() == "developer" for turn in turns)


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
        if str(instance.get("constraints") or "None").rstrip(".") != "None":  # Unnatural Instructions
            constraints = excerpt_of(instance["constraints"])
            raise RowFault(
                UNSUPPORTED_FIELD,
                f"constraints {constraints} of an instance: a part of the prompt; write it into the input",
            )
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
    return (_message("assistant", verbatim(value_of(layout, row, "text"), layout.columns["text"], EMPTY_TEXT)),)


def _prompt_completion(layout: Layout, row: Mapping[str, Any]) -> tuple[Message, ...]:
    prompt, completion = value_of(layout, row, "prompt"), value_of(layout, row, "completion")
    check_markers(prompt, layout.columns["prompt"])
    return (
        *system_turns(layout, row),
        _message("user", verbatim(prompt, layout.columns["prompt"], EMPTY_PROMPT)),
        _message("assistant", answer_text(completion, layout.columns["completion"])),
    )


def _label(layout: Layout, row: Mapping[str, Any]) -> tuple[Message, ...]:
    text = verbatim(value_of(layout, row, "text"), layout.columns["text"], EMPTY_PROMPT)
    label = _plain_text(value_of(layout, row, "label"), layout.columns["label"])
    return (*system_turns(layout, row), _message("user", text), _message("assistant", label))


def answer_text(value: Any, column: str) -> str:
    """Return an answer as text: as ``_plain_text`` does, a fraction by its digits, and an object as JSON.

    Raises:
        RowFault: it is a turn beside a prompt that is text, or no answer.
    """
    if isinstance(value, dict) and {"role", "content"} <= value.keys():
        raise RowFault(
            WRONG_TYPE, f"{column} is a turn and the prompt is text; write both as text, or both as lists of turns"
        )
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
    instruction = verbatim(value_of(layout, row, "instruction"), layout.columns["instruction"], EMPTY_PROMPT)
    context = optional_of(layout, row, "input")
    output = answer_text(value_of(layout, row, "output"), layout.columns["output"])
    question = f"{instruction}\n\n{context}" if context else instruction
    return (
        *system_turns(layout, row),
        *history_turns(layout, row),
        _message("user", question),
        _message("assistant", output),
    )


def history_turns(layout: Layout, row: Mapping[str, Any]) -> list[Message]:
    """Return the turns of the column ``history``, a list of [user, assistant] pairs."""
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
    return _chat(layout, row, aftersystem_turns(layout, row, map(role_turn, _list(layout, row, "messages"))))


def _chat(layout: Layout, row: Mapping[str, Any], turns: Sequence[Message]) -> tuple[Message, ...]:
    """Return turns with the pictures and the tools of their row, up to the last that the model learns."""
    return with_tools(in_turn(with_pictures(turns, row, layout.columns.values())), tools_of(row))


def _conversational(layout: Layout, row: Mapping[str, Any]) -> tuple[Message, ...]:
    prompt, completion = _list(layout, row, "prompt"), _list(layout, row, "completion")
    if not prompt:
        raise RowFault(EMPTY_PROMPT, layout.columns["prompt"])
    if not completion:
        raise RowFault(EMPTY_COMPLETION, layout.columns["completion"])
    # As in TRL, the turns of the prompt are context, and the model learns those of the completion.
    context = [as_context(role_turn(turn)) for turn in prompt]
    return _chat(layout, row, [*context, *map(role_turn, completion)])


def _sharegpt(layout: Layout, row: Mapping[str, Any]) -> tuple[Message, ...]:
    return _chat(layout, row, aftersystem_turns(layout, row, map(sharegpt_turn, _list(layout, row, "conversations"))))


def aftersystem_turns(layout: Layout, row: Mapping[str, Any], turns: Iterable[Message]) -> list[Message]:
    """Return the turns after the text of the system column, unless they start with the same text."""
    messages, system = list(turns), system_turns(layout, row)
    return messages if messages[:1] == system else [*system, *messages]


_NO_MEDIA = "this version trains on text and pictures only"
_TOOLS = "only rows of turns can have tools, as messages or ShareGPT"
_UNSUPPORTED_COLUMNS = dict.fromkeys(("videos", "video", "audios", "audio", "audio_path"), _NO_MEDIA)

CHATS = ("messages", "sharegpt", "conversational", *ROW_FORM_LAYOUTS)
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


def value_of(layout: Layout, row: Mapping[str, Any], part: str) -> Any:
    """Return the value of a part. Raises RowFault where it is missing or null."""
    column = layout.columns[part]
    if column not in row:
        raise RowFault(MISSING_FIELD, column)
    if row[column] is None:
        raise RowFault(NULL_FIELD, column)
    return row[column]


def _list(layout: Layout, row: Mapping[str, Any], part: str) -> list[Any]:
    value = value_of(layout, row, part)
    if not isinstance(value, list):
        raise RowFault(WRONG_TYPE, f"{layout.columns[part]} is {excerpt_of(value)}, not a list")
    return value


def optional_of(layout: Layout, row: Mapping[str, Any], part: str) -> str:
    """Return the text of an optional part, or "" where the row has no such column, null or a blank text."""
    column = layout.columns.get(part)
    return optional_text(row.get(column), column) if column else ""


def system_turns(layout: Layout, row: Mapping[str, Any]) -> list[Message]:
    """Return the system turn with the text of the system column; none where the row has no text in it."""
    text = optional_of(layout, row, "system")
    return [_message("system", text)] if text else []


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
