"""Read pairs of a better and a worse answer to one prompt. Standard library only.

A column holds the prompt, or it is what both sides begin with: the first turns of two dialogues, the first words of two
texts (TRL's implicit prompt). Only the answers after it carry loss.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_finetune_plugin.data.conversations.conversion import Conversation, check_fields, developer_turns, value_of
from mlflow_finetune_plugin.data.conversations.layouts import JUDGED, RANKED, Layout
from mlflow_finetune_plugin.data.conversations.row_faults import (
    EMPTY_COMPLETION,
    EMPTY_PROMPT,
    EQUAL_ANSWERS,
    PROMPTS_DIFFER,
    WRONG_TYPE,
    RowFault,
)
from mlflow_finetune_plugin.data.conversations.row_forms.dialogues import (
    answer_turns,
    is_transcript,
    opens_with_prompt,
    prompt_turns,
    row_tools,
    shared_turns,
    whole_dialogue,
)
from mlflow_finetune_plugin.data.conversations.row_forms.judged import as_pair
from mlflow_finetune_plugin.data.conversations.texts import excerpt_of, verbatim
from mlflow_finetune_plugin.data.conversations.turns.chat import as_context, in_turn, with_tools
from mlflow_finetune_plugin.evaluation.results import Message

Turns = Sequence[Message]


def pairs_of(layout: Layout, row: Mapping[str, Any]) -> list[Conversation]:
    """Return one conversation for each pair of ``row``: ``messages`` end with the better answer, ``rejected`` with the worse.

    A side that is a list of texts holds several answers; each better one makes a pair with each worse one.

    Raises:
        RowFault: a side is empty, both sides are equal, or they answer different prompts.
    """
    if layout.name == JUDGED:
        layout = as_pair(layout, row)
    check_fields(layout, row)
    prompt, margin, tools = prompt_turns(layout, row), _margin(layout, row), row_tools(layout, row)
    developers = developer_turns(row.get(column) for column in layout.columns.values())
    pairs = []
    for better, worse in _answers(layout, row):
        asked, chosen, rejected = _sides(layout, row, prompt, better, worse)
        context = list(map(as_context, asked))
        sides = [with_tools(in_turn([*context, *answer]), tools) for answer in (chosen, rejected)]
        pairs.append(Conversation(sides[0], developers, rejected=sides[1], margin=margin))
    return pairs


def pair_columns(layout: Layout) -> tuple[str, str]:
    """Return the columns of the better and of the worse answer; in a ranked file both are the same one."""
    if layout.name == RANKED:
        return layout.columns["output"], layout.columns["output"]
    return layout.columns["chosen"], layout.columns["rejected"]


def _answers(layout: Layout, row: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """Return the pairs of a better and a worse answer as the file holds them."""
    if layout.name == RANKED:
        answers = value_of(layout, row, "output")
        if not isinstance(answers, list) or len(answers) != 2:
            what = f"{layout.columns['output']} is {excerpt_of(answers)}"
            raise RowFault(WRONG_TYPE, f"{what}, not a list of a better and a worse answer")
        return [(answers[0], answers[1])]
    return list(itertools.product(*(_each(value_of(layout, row, part)) for part in ("chosen", "rejected"))))


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) and value and all(isinstance(item, str) for item in value) else [value]


def _sides(
    layout: Layout, row: Mapping[str, Any], prompt: list[Message], better: Any, worse: Any
) -> tuple[list[Message], list[Message], list[Message]]:
    """Return the turns of the prompt, of the better and of the worse answer."""
    if "prompt" not in layout.columns and _is_plain(better) and _is_plain(worse):
        asked, better, worse = _shared_text(layout, better, worse)
        prompt = [*prompt, {"role": "user", "content": asked}]
    chosen, rejected = (
        answer_turns(layout, row, value, column)
        for value, column in zip((better, worse), pair_columns(layout), strict=True)
    )
    if "prompt" not in layout.columns and opens_with_prompt(chosen) and not opens_with_prompt(rejected):
        rejected = [*_before_answer(chosen), *rejected]  # ms-swift's rejected_response
    if any(map(opens_with_prompt, (chosen, rejected))):
        return _dialogues(layout, whole_dialogue(prompt, chosen), whole_dialogue(prompt, rejected))
    _check_prompt(prompt, layout)
    if len(chosen) == len(rejected) == shared_turns(chosen, rejected):
        raise _equal(layout)
    return prompt, chosen, rejected


def _dialogues(layout: Layout, chosen: Turns, rejected: Turns) -> tuple[list[Message], list[Message], list[Message]]:
    """Split off the turns with which two whole dialogues begin."""
    count = shared_turns(chosen, rejected)
    prompt, better, worse = list(chosen[:count]), list(chosen[count:]), list(rejected[count:])
    if not better and not worse:
        raise _equal(layout)
    sides = list(zip((better, worse), pair_columns(layout), strict=True))
    if empty := [column for turns, column in sides if not turns]:
        raise RowFault(EMPTY_COMPLETION, f"{empty[0]} ends where the other side begins to answer")
    for turns, column in sides:
        if turns[0]["role"] != "assistant":
            raise RowFault(
                PROMPTS_DIFFER, f"turn {count + 1} of {column} is a {turns[0]['role']} turn that only it has"
            )
    _check_prompt(prompt, layout)
    return prompt, better, worse


def _before_answer(dialogue: Turns) -> list[Message]:
    """Return the turns before the last assistant turn."""
    last = max((index for index, turn in enumerate(dialogue) if turn["role"] == "assistant"), default=len(dialogue))
    return list(dialogue[:last])


def _check_prompt(prompt: Turns, layout: Layout) -> None:
    if not any(turn["role"] == "user" for turn in prompt):
        raise RowFault(EMPTY_PROMPT, f"{' and '.join(pair_columns(layout))} share no question, and no column holds one")


def _equal(layout: Layout) -> RowFault:
    return RowFault(EQUAL_ANSWERS, " and ".join(dict.fromkeys(pair_columns(layout))))


def _is_plain(value: Any) -> bool:
    return isinstance(value, str) and not is_transcript(value) and value.lstrip()[:2] not in ("[{", '{"')


def _shared_text(layout: Layout, better: str, worse: str) -> tuple[str, str, str]:
    """Return the words that two texts begin with, and the rest of each, as TRL splits them."""
    columns = pair_columns(layout)
    for text, column in zip((better, worse), columns, strict=True):
        verbatim(text, column, EMPTY_COMPLETION)
    if better.strip() == worse.strip():
        raise _equal(layout)
    shared = itertools.takewhile(lambda letters: letters[0] == letters[1], zip(better, worse, strict=False))
    # The blank before the first word that differs belongs to the answers.
    asked = better[: sum(1 for _ in shared)].removesuffix(" ")
    return (
        verbatim(asked, f"the beginning that {' and '.join(columns)} share", EMPTY_PROMPT),
        better[len(asked) :],
        worse[len(asked) :],
    )


def _margin(layout: Layout, row: Mapping[str, Any]) -> float | None:
    column = layout.columns.get("margin")
    value = row.get(column) if column else None
    if value is None or value == "":
        return None
    try:
        margin = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        margin = math.nan
    if not math.isfinite(margin):
        raise RowFault(WRONG_TYPE, f"{column} is {excerpt_of(value)}, not a number")
    return margin
