"""Recognise rows from which sft cannot learn, and refuse them: they rate or rank answers, or have none to learn.

Every fix that an error names was tried on the first rows of the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_finetune_plugin.data.columns.offers import BESIDE_TEXT, columns_fix
from mlflow_finetune_plugin.data.columns.ratings import (
    ENTRY_POINTS,
    RATINGS,
    REJECTED,
    WHY,
    AnswerLists,
    is_flag,
    rating_fault,
)
from mlflow_finetune_plugin.data.conversations.conversion import to_conversations
from mlflow_finetune_plugin.data.conversations.layouts import (
    LABEL_COLUMNS,
    PREFERENCE,
    TEXT_COLUMNS,
    Layout,
    detect_layout,
)
from mlflow_finetune_plugin.data.conversations.nested_columns import TRANSLATION
from mlflow_finetune_plugin.data.conversations.row_faults import RowFault
from mlflow_finetune_plugin.data.conversations.texts import excerpt_of
from mlflow_finetune_plugin.errors import DataError

Rows = Sequence[Mapping[str, Any]]

_CHOSEN = re.compile(r"(^|_)(chosen|preferred)(_|$)|^response_j$")
_DECIMAL = re.compile(r"-?\d*\.\d+(e-?\d+)?")
_LIST_TEXT = re.compile(r"""\[\s*(\d+|"[^"]*"|'[^']*')(\s*,\s*(\d+|"[^"]*"|'[^']*'))*\s*\]""")
_FEWEST_ROWS = 10
_CHECKED = frozenset(("solution", "ground_truth"))
"""Columns with which a reward checks an answer. They hold a result, seldom the text that leads to it."""
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
            f"the columns completions, labels rate the steps of an answer: {WHY}; no objective of this version learns from rated "
            "steps; fix: write the right answers as prompt and completion"
        )


def check_answered(rows: Rows) -> None:
    """Raise DataError for rows without an answer, for Axolotl's segments, and for translations without a direction.

    Args:
        rows: The first rows of a file whose columns the user did not name.
    """
    present = {str(name) for row in rows for name, value in row.items() if value is not None}
    prompts = sorted(present & set(_PROMPTS))
    if "reward_model" in present or (len(prompts) == 1 and present <= {*prompts, *BESIDE_TEXT}):
        raise _without_answers(present, "write the answer of each prompt into a column completion")
    if _CHECKED & present and "prompt" in present and not present & (_ANSWERS - _CHECKED):
        (checked, *_) = sorted(_CHECKED & present)
        fix = (
            f"write the whole answer of each prompt into a column completion, or, if {checked!r} is the text to learn, "
        )
        raise _without_answers(present, fix + columns_fix({"prompt": "prompt", "completion": checked}))
    if asks_only(rows):
        raise _without_answers(present, "end each conversation with the turn of the assistant that is to be learned")
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
            f"fix: {columns_fix({'prompt': languages[0], 'completion': languages[1]})}, or the reverse"
        )


def _without_answers(present: set[str], fix: str) -> DataError:
    return DataError(
        f"the rows hold prompts without answers ({', '.join(sorted(present))}), as training with rewards needs: "
        f"the objective sft learns answers; fix: {ENTRY_POINTS['prompts']} trains on prompts with a reward; or {fix}"
    )


def asks_only(rows: Rows) -> bool:
    """Return whether the rows are conversations of which none has an answer."""
    chats = [turns for row in rows for name in _CHATS if isinstance(turns := row.get(name), list) and turns]
    roles = [str(turn.get("role", turn.get("from"))).lower() for t in chats for turn in t if isinstance(turn, dict)]
    return bool(roles) and set(roles) <= {"system", "developer", "user", "human"}


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
    _check_single_labels(column, values)
    fractions = [v for v in values if isinstance(v, float) and math.isfinite(v) and not v.is_integer()]
    texts = [float(v) for v in values if isinstance(v, str) and _DECIMAL.fullmatch(v.strip())]
    # The cells of a CSV file are texts: a few ratings such as 4.5 may be classes, as many numbers as rows are not.
    are_measured = len(texts) == len(values) >= _FEWEST_ROWS and len(set(texts)) * 2 > len(texts)
    if fractions or are_measured:
        example = next((value for value in [*fractions, *texts] if not value.is_integer()), 0.0)
        raise DataError(
            f"the column {column!r} holds numbers such as {example:g}, which are not classes, and this version does not train "
            "regression; fix: write a class for each range of the numbers into a column (low, high), and name it in "
            "data.columns: {label: ...}"
        )


def check_labels(rows: Rows) -> None:
    """Raise DataError for rows with several labels: lists in a column ``labels``, or a column of 0 and 1 for each label.

    Args:
        rows: The first rows of a file whose columns the user did not name.
    """
    present = {str(name) for row in rows for name, value in row.items() if value is not None}
    if not present & set(TEXT_COLUMNS):
        return
    _check_single_labels("labels", [row.get("labels") for row in rows])
    others = present - {*TEXT_COLUMNS, *BESIDE_TEXT}
    flags = sorted(name for name in others if all(is_flag(row.get(name)) for row in rows))
    if len(flags) > 1 and set(flags) == others and not present & set(LABEL_COLUMNS):
        raise _several_labels(f"the columns {', '.join(flags)} hold 0 or 1 each, as the several labels of a row do")


def _check_single_labels(column: str, values: Sequence[Any]) -> None:
    lists = [value for value in values if isinstance(value, list) or _is_list_text(value)]
    if lists:
        example = excerpt_of(lists[0])
        raise _several_labels(f"the column {column!r} holds lists of labels such as {example}")


def _is_list_text(value: Any) -> bool:
    """Return whether a cell of a CSV file holds a list in the form of JSON or Python."""
    return isinstance(value, str) and _LIST_TEXT.fullmatch(value.strip()) is not None


def _several_labels(what: str) -> DataError:
    return DataError(
        f"{what}, and a row has one label here: accuracy compares one class with another; fix: write the labels of a row, in "
        "a fixed order, as one text into a column labels_text, and set data.columns: {prompt: COLUMN, completion: labels_text}"
    )


def _pairs_text(rows: Rows, present: list[str], rejected: list[str]) -> str:
    chosen = [name for name in present if _CHOSEN.search(name) and name not in rejected]
    pairs = ", ".join([*(name for name in _PROMPTS if name in present), *chosen, *rejected])
    fix = _columns_fix(rows, chosen) or _ignore_fix(rows, rejected)
    return (
        f"preference: {pairs}: preference pairs cannot be used for training with sft: {WHY}; "
        f"fix: {ENTRY_POINTS['pairs']} trains on pairs; or "
        + (fix or "write each row as messages, with the better answer as the last turn")
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
