"""Read a prompt or an answer as turns: from a text, a transcript, one turn, or a list of turns. Standard library only."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_finetune_plugin.data.conversations.conversion import history_turns, optional_of, system_turns, value_of
from mlflow_finetune_plugin.data.conversations.layouts import Layout
from mlflow_finetune_plugin.data.conversations.pictures import ALL_PICTURES, NOT_IN_THIS_FORM
from mlflow_finetune_plugin.data.conversations.row_faults import (
    EMPTY_COMPLETION,
    EMPTY_PROMPT,
    NULL_FIELD,
    PROMPTS_DIFFER,
    UNSUPPORTED_FIELD,
    WRONG_TYPE,
    RowFault,
)
from mlflow_finetune_plugin.data.conversations.row_marks import check_markers
from mlflow_finetune_plugin.data.conversations.texts import excerpt_of, verbatim
from mlflow_finetune_plugin.data.conversations.turns.chat import as_context, role_turn, sharegpt_turn, whole_text
from mlflow_finetune_plugin.data.conversations.turns.tool_calls import TOOL_COLUMNS, tools_of
from mlflow_finetune_plugin.evaluation.results import Message
from mlflow_finetune_plugin.images.turns import PICTURES

_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def turns_of(value: Any, column: str, role: str) -> list[Message]:
    """Return a prompt or an answer as turns.

    Args:
        value: A text, a transcript of HH-RLHF, a turn, a list of turns, or an object with ``messages`` (OpenAI's ``input``).
        column: Its column, for faults.
        role: The role of a plain text: ``user`` for a prompt, ``assistant`` for an answer.

    Raises:
        RowFault: the value is empty or of another type, or a turn cannot be read.
    """
    value = _from_json(value)
    if_empty = EMPTY_COMPLETION if role == "assistant" else EMPTY_PROMPT
    if value is None:
        raise RowFault(NULL_FIELD, column)
    if isinstance(value, Mapping) and "messages" in value:
        value = value["messages"]
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, list):
        if not value:
            raise RowFault(if_empty, column)
        return [_turn(turn, column) for turn in value]
    text = verbatim(value, column, if_empty)
    return transcript_turns(text, column) if is_transcript(text) else [{"role": role, "content": text}]


def answer_turns(layout: Layout, row: Mapping[str, Any], value: Any, column: str) -> list[Message]:
    """Return an answer as turns. Behind a transcript, the single blank before its text is a part of the form."""
    turns = turns_of(value, column, "assistant")
    if isinstance(value, str) and len(turns) == 1 and is_transcript(row.get(layout.columns.get("prompt", ""))):
        return [{**turns[0], "content": turns[0]["content"].removeprefix(" ")}]
    return turns


def is_transcript(value: Any) -> bool:
    r"""Return whether a text is a dialogue in the form of HH-RLHF: ``\n\nHuman: ...\n\nAssistant: ...``."""
    return isinstance(value, str) and value.lstrip().startswith("Human:") and "\n\nAssistant:" in value


def transcript_turns(text: str, column: str) -> list[Message]:
    """Return the turns of a transcript. A prompt may end with an empty ``Assistant:``, which does not count.

    The single blank after a colon is a part of the form. All other text is used verbatim.
    """
    _, *pieces = _SPEAKER.split(text)
    turns = [
        (_ROLES[speaker], content.removeprefix(" ")) for speaker, content in zip(pieces[::2], pieces[1::2], strict=True)
    ]
    if turns and turns[-1][0] == "assistant" and not turns[-1][1].strip():
        turns.pop()
    return [
        {"role": role, "content": verbatim(content, column, EMPTY_PROMPT if role == "user" else EMPTY_COMPLETION)}
        for role, content in turns
    ]


def prompt_turns(layout: Layout, row: Mapping[str, Any]) -> list[Message]:
    """Return the turns before the answer: system text, history and prompt. Its assistant turns carry no loss.

    A row without a column for its prompt has the system turn alone, if any.
    """
    turns = [*history_turns(layout, row), *_asked(layout, row)]
    system = system_turns(layout, row)
    return list(map(as_context, turns if turns[:1] == system else [*system, *turns]))


def _asked(layout: Layout, row: Mapping[str, Any]) -> list[Message]:
    column = layout.columns.get("prompt")
    if column is None:
        return []
    value = value_of(layout, row, "prompt")
    check_markers(value, column)
    turns = turns_of(value, column, "user")
    context = optional_of(layout, row, "input")
    if context and isinstance(value, str) and len(turns) == 1:  # as in Alpaca, a blank line joins them
        return [{**turns[0], "content": f"{turns[0]['content']}\n\n{context}"}]
    return turns


def opens_with_prompt(turns: Sequence[Message]) -> bool:
    """Return whether these turns are a whole dialogue and not an answer alone."""
    return turns[0]["role"] in ("system", "user")


def whole_dialogue(prompt: Sequence[Message], answer: Sequence[Message]) -> list[Message]:
    """Return an answer after its prompt. An answer that is a whole dialogue repeats the prompt.

    Raises:
        RowFault: the dialogue does not ask what the prompt asks.
    """
    if not opens_with_prompt(answer):
        return [*prompt, *answer]
    asked = [turn for turn in prompt if turn["role"] == "user"]
    if asked and not any(is_same(asked[-1], turn) for turn in answer):
        raise RowFault(
            PROMPTS_DIFFER,
            "an answer is a whole dialogue, and it asks something else than the column of the prompt; data.ignore with "
            "that column takes the prompt from the dialogues",
        )
    system = [turn for turn in prompt[:1] if turn["role"] == "system" and not is_same(turn, answer[0])]
    return [*system, *answer]


def shared_turns(first: Sequence[Message], second: Sequence[Message]) -> int:
    """Return with how many equal turns two dialogues begin."""
    count = 0
    for mine, other in zip(first, second, strict=False):
        if not is_same(mine, other):
            break
        count += 1
    return count


def is_same(first: Message, second: Message) -> bool:
    """Return whether two turns say the same, apart from blanks around it and from marks of the loss."""
    return first["role"] == second["role"] and whole_text(first).strip() == whole_text(second).strip()


def row_tools(layout: Layout, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tools of a row. OpenAI writes them beside the messages of ``input``."""
    prompt = row.get(layout.columns.get("prompt", ""))
    nested = {name: prompt[name] for name in TOOL_COLUMNS if name in prompt} if isinstance(prompt, Mapping) else {}
    return tools_of({**row, **nested})


def _turn(turn: Any, column: str) -> Message:
    if not isinstance(turn, Mapping):
        raise RowFault(WRONG_TYPE, f"a turn of {column} is {excerpt_of(turn)}, not an object")
    read = sharegpt_turn(turn) if "from" in turn and "role" not in turn else role_turn(turn)
    if PICTURES in read:
        raise RowFault(UNSUPPORTED_FIELD, f"{NOT_IN_THIS_FORM}; data.ignore: [{ALL_PICTURES}] trains without them")
    return read


def _from_json(value: Any) -> Any:
    """Return the turns that a cell of a CSV file holds as JSON. Any other text that looks like JSON is a text."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return value
    first = parsed[0] if isinstance(parsed, list) and parsed else parsed
    is_turn = isinstance(first, dict) and bool(first.keys() & {"role", "from", "messages"})
    return parsed if is_turn else value
