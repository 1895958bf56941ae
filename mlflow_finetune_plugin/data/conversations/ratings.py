"""Recognise rows from which sft cannot learn, and refuse them: they rate or rank answers, or have none to learn.

Every fix that an error names was tried on the first rows of the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_finetune_plugin.data.conversations.conversion import to_conversations
from mlflow_finetune_plugin.data.conversations.layouts import BESIDE_TEXT, PREFERENCE, Layout, detect_layout
from mlflow_finetune_plugin.data.conversations.nested_columns import TRANSLATION
from mlflow_finetune_plugin.data.conversations.rating_columns import (
    RATINGS,
    REJECTED,
    WHY,
    AnswerLists,
    is_flag,
    rating_fault,
)
from mlflow_finetune_plugin.data.conversations.row_faults import RowFault
from mlflow_finetune_plugin.errors import DataError

Rows = Sequence[Mapping[str, Any]]

_CHOSEN = re.compile(r"(^|_)(chosen|preferred)(_|$)|^response_j$")
_DECIMAL = re.compile(r"-?\d*\.\d+(e-?\d+)?")
_FEWEST_ROWS = 10
_PROMPTS = ("prompt", "question", "instruction", "input", "query")
_CHATS = ("messages", "conversations", "conversation")
_ANSWERS = frozenset(("completion", "response", "output", "answer", "generation", "solution", "completions", *_CHATS))


def check_single_answers(rows: Rows) -> None:
    """Raise DataError where the rows hold pairs, rankings or ratings of answers.

    Args:
        rows: The first rows of a file whose columns the user did not name.
    """
    present = {str(name) for row in rows for name, value in row.items() if value is not None and value != []}
    rejected = sorted(name for name in present if REJECTED.search(name))
    if rejected:
        raise DataError(_pairs_text(rows, sorted(present), rejected))
    for name in RATINGS:
        if name in present and _rates(name, rows, present):
            raise rating_fault(name)
    if {"completions", "labels"} <= present and _all_lists(rows, "completions", "labels"):
        raise DataError(
            f"the columns completions, labels rate the steps of an answer: {WHY} rated steps; "
            "fix: write the right answers as prompt and completion"
        )


def check_answered(rows: Rows) -> None:
    """Raise DataError for rows without an answer, for Axolotl's segments, and for translations without a direction.

    Args:
        rows: The first rows of a file whose columns the user did not name.
    """
    present = {str(name) for row in rows for name, value in row.items() if value is not None}
    prompts = sorted(present & set(_PROMPTS))
    if "reward_model" in present or (len(prompts) == 1 and present <= {*prompts, *BESIDE_TEXT}):
        raise DataError(
            f"the rows hold prompts without answers ({', '.join(sorted(present))}), as training with rewards needs: "
            "the objective sft learns answers; fix: write the answer of each prompt into a column completion"
        )
    if "segments" in present:
        raise DataError(
            "the column 'segments' holds text in the form of a prompt format (Axolotl's input_output). A served model gets "
            "its prompts from a chat template, so these prompts would differ; fix: write each row as messages, and mark "
            "turns that the model must not learn with weight: 0"
        )
    languages = sorted(name for name in present if name.startswith(f"{TRANSLATION}."))
    if len(languages) > 1:
        raise DataError(
            f"the column 'translation' holds the languages {', '.join(languages)}, and the direction is not clear; "
            f"fix: data.columns: {{prompt: {languages[0]}, completion: {languages[1]}}}, or the reverse"
        )


def check_ranked(layout: Layout, rows: Rows) -> None:
    """Raise DataError for pairs whose columns the user named, and for an Alpaca file with lists of two answers.

    LLaMA-Factory reads the second of two answers as the worse one.
    """
    if layout.name == PREFERENCE:
        columns = layout.columns
        raise DataError(_pairs_text(rows, [columns["chosen"], *columns.values()], [columns["rejected"]]))
    if layout.name != "alpaca":
        return
    answers = AnswerLists(layout.columns["output"])
    for row in rows:
        answers.add(row)
    answers.check()


def check_classes(layout: Layout, rows: Rows) -> None:
    """Raise DataError where the labels are measurements such as 0.35 and not classes."""
    if layout.name != "label":
        return
    column = layout.columns["label"]
    values = [row.get(column) for row in rows]
    fractions = [v for v in values if isinstance(v, float) and math.isfinite(v) and not v.is_integer()]
    texts = [float(v) for v in values if isinstance(v, str) and _DECIMAL.fullmatch(v.strip())]
    # The cells of a CSV file are texts: a few ratings such as 4.5 may be classes, as many numbers as rows are not.
    are_measured = len(texts) == len(values) >= _FEWEST_ROWS and len(set(texts)) * 2 > len(texts)
    if fractions or are_measured:
        example = next(iter(fractions or texts))
        raise DataError(
            f"the column {column!r} holds numbers such as {example:g}, which are not classes, and this version does not train "
            "regression; fix: write a class for each range of the numbers into a column (low, high), and name it in "
            "data.columns: {label: ...}"
        )


def _pairs_text(rows: Rows, present: list[str], rejected: list[str]) -> str:
    chosen = [name for name in present if _CHOSEN.search(name) and name not in rejected]
    pairs = ", ".join([*(name for name in _PROMPTS if name in present), *chosen, *rejected])
    fix = _columns_fix(rows, chosen) or _ignore_fix(rows, rejected)
    return f"preference: {pairs}: preference pairs cannot be used for training: {WHY} pairs; fix: " + (
        fix or "write each row as messages, with the better answer as the last turn"
    )


def _columns_fix(rows: Rows, chosen: Sequence[str]) -> str | None:
    """Return the columns with which a run can train on the better answers; None where no choice of columns does."""
    for answer in chosen:
        for columns in ({"messages": answer}, *({"prompt": name, "completion": answer} for name in _PROMPTS)):
            if all(any(row.get(name) is not None for row in rows) for name in columns.values()) and _works(
                rows, columns
            ):
                listed = ", ".join(f"{part}: {column}" for part, column in columns.items())
                return f"data.columns: {{{listed}}} trains on the better answer alone"
    return None


def _ignore_fix(rows: Rows, rejected: Sequence[str]) -> str | None:
    reduced = [{name: value for name, value in row.items() if name not in rejected} for row in rows]
    return f"data.ignore: [{', '.join(rejected)}] trains on the better answer alone" if _works(reduced, {}) else None


def _works(rows: Rows, columns: Mapping[str, str]) -> bool:
    try:
        return bool(to_conversations(detect_layout(rows, columns), rows[0]))
    except (DataError, RowFault):
        return False


def _rates(name: str, rows: Rows, present: set[str]) -> bool:
    """Return whether a column rates the answers beside it. Numbers in ``label`` are classes where there is no whole answer."""
    if not present & _ANSWERS or not all(is_flag(row.get(name)) for row in rows):
        return False
    has_numbers = any(str(row.get(name)).strip() in ("0", "1", "0.0", "1.0") for row in rows)
    return name != "label" or not has_numbers or bool(present & {*_PROMPTS, *_CHATS})


def _all_lists(rows: Rows, *names: str) -> bool:
    return all(isinstance(row.get(name), list) for row in rows for name in names)
