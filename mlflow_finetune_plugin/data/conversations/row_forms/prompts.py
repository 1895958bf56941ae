"""Read prompts whose answers the model writes itself, with the row's other columns for the reward. Standard library only."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_finetune_plugin.data.conversations.conversion import (
    Conversation,
    answer_text,
    check_media,
    developer_turns,
)
from mlflow_finetune_plugin.data.conversations.layouts import PREFERENCE, Layout
from mlflow_finetune_plugin.data.conversations.pictures import refuse_pictures
from mlflow_finetune_plugin.data.conversations.row_faults import EMPTY_PROMPT, ROLES_OUT_OF_ORDER, RowFault
from mlflow_finetune_plugin.data.conversations.row_forms.dialogues import prompt_turns, row_tools
from mlflow_finetune_plugin.data.conversations.row_forms.pairs import pairs_of
from mlflow_finetune_plugin.data.conversations.texts import verbatim
from mlflow_finetune_plugin.data.conversations.turns.chat import as_context, is_learnt, with_tools
from mlflow_finetune_plugin.data.conversations.turns.tool_calls import TOOL_COLUMNS
from mlflow_finetune_plugin.evaluation.results import Message

REFERENCE = "reference"
"""The field with the answer of a row: its own column of this name, else the answer after the prompt."""

BEFORE_ANSWER = ("system", "history", "prompt", "input")
"""The parts of a row that a prompt consists of."""


def prompts_of(layout: Layout, row: Mapping[str, Any]) -> list[Conversation]:
    """Return the prompt of ``row``. Its ``fields`` hold every column that is not a part of the prompt.

    Raises:
        RowFault: the row has no prompt.
    """
    refuse_pictures(row, layout.columns.values())
    check_media(layout, row)
    if layout.name == PREFERENCE:
        prompt, answer = _of_pair(layout, row)
    else:
        prompt, answer = _before_answer(prompt_turns(layout, row))
    _check_prompt(prompt)
    developers = developer_turns([row.get(layout.columns.get("prompt", ""))])
    messages = with_tools(list(map(as_context, prompt)), row_tools(layout, row))
    return [Conversation(messages, developers, fields=_fields(layout, row, answer))]


def _of_pair(layout: Layout, row: Mapping[str, Any]) -> tuple[list[Message], str]:
    """Return the turns that both sides of a pair begin with, and the better answer."""
    turns = pairs_of(layout, row)[0].messages
    first = next(index for index, turn in enumerate(turns) if is_learnt(turn))
    return [{key: value for key, value in turn.items() if key != "tools"} for turn in turns[:first]], turns[-1][
        "content"
    ]


def _before_answer(turns: Sequence[Message]) -> tuple[list[Message], str]:
    """Return the turns up to the last that asks, and the text of the answer after it, or ""."""
    if len(turns) > 1 and turns[-1]["role"] == "assistant":
        return list(turns[:-1]), turns[-1]["content"]
    return list(turns), ""


def _check_prompt(prompt: Sequence[Message]) -> None:
    roles = " ".join(turn["role"] for turn in prompt)
    if "user" not in roles.split():
        raise RowFault(EMPTY_PROMPT, roles)
    if prompt[-1]["role"] not in ("user", "tool"):
        raise RowFault(ROLES_OUT_OF_ORDER, f"{roles}: a prompt ends with what the model answers")


def _fields(layout: Layout, row: Mapping[str, Any], answer: str) -> str:
    """Return the columns for the reward as the text of a JSON object."""
    read = {layout.columns[part] for part in BEFORE_ANSWER if part in layout.columns}
    fields = {str(name): _as_json(value) for name, value in row.items() if name not in (*read, *TOOL_COLUMNS)}
    if fields.get(REFERENCE) is None and (text := answer or _answer(layout, row)):
        fields[REFERENCE] = text
    return verbatim(json.dumps(fields, ensure_ascii=False, default=str), "the row's other columns", EMPTY_PROMPT)


def _answer(layout: Layout, row: Mapping[str, Any]) -> str:
    """Return the text of the column with the answer, or "" where the row has none."""
    column = layout.columns.get("completion", layout.columns.get("label", ""))
    value = row.get(column)
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):  # SQuAD
        value = value["text"]
    if isinstance(value, list):
        value = next((item for item in reversed(value) if isinstance(item, str | Mapping)), None)
        value = value.get("content", value.get("value")) if isinstance(value, Mapping) else value
    try:
        return answer_text(value, column)
    except RowFault:
        return ""


def _as_json(value: Any) -> Any:
    """Return a value that JSON can hold: null for a number that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(name): _as_json(inner) for name, inner in value.items()}
    return [_as_json(inner) for inner in value] if isinstance(value, list | tuple) else value
