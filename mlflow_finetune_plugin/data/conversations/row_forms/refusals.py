"""Say why a file does not fit the objective, and which entry point takes its rows. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_finetune_plugin.data.columns.ratings import ENTRY_POINTS, SCORES
from mlflow_finetune_plugin.data.conversations.layouts import (
    COMPOSED,
    JUDGED,
    LAYOUTS,
    PREFERENCE,
    PROMPTS,
    RANKED,
    RATED,
    ROW_FORM_LAYOUTS,
    TEXT,
    detect_layout,
)
from mlflow_finetune_plugin.data.conversations.ratings import asks_only
from mlflow_finetune_plugin.data.conversations.row_forms.columns import FormColumns
from mlflow_finetune_plugin.data.conversations.row_forms.judged import VERDICTS
from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.methods import RowForm

Rows = Sequence[Mapping[str, Any]]

FORM_LAYOUTS: Mapping[RowForm, tuple[str, ...]] = {
    "answers": tuple(name for name in LAYOUTS if name not in ROW_FORM_LAYOUTS),
    "pairs": (PREFERENCE, RANKED, JUDGED),
    "rated": (RATED, PREFERENCE, RANKED, JUDGED),
    "prompts": (PROMPTS, PREFERENCE),
}
"""The layouts that each form reads, the likeliest first."""

_ASKED = "prompts without answers"
_NEEDED: Mapping[RowForm, str] = {
    "answers": "one answer for each prompt, such as prompt and completion",
    "pairs": "pairs of a better and a worse answer, such as prompt, chosen and rejected",
    "rated": "answers rated good or bad, such as prompt, completion and label, or pairs such as prompt, chosen and rejected",
    "prompts": "prompts, such as prompt with columns for the reward",
}
_NAMED: Mapping[RowForm, str] = {
    "answers": "{prompt: ..., completion: ...}",
    "pairs": "{prompt: ..., chosen: ..., rejected: ...}",
    "rated": "{prompt: ..., completion: ..., label: ...}",
    "prompts": "{prompt: ...}",
}
_RANKED_LISTS = ("answers", "completions", "responses", "candidates", "outputs")
_RANKS = frozenset(("rank", "score", "rating", "overall_score", "reward"))


def refusal(rows: Rows, form: RowForm) -> DataError:
    """Return the error for a file that has no rows of ``form``.

    Args:
        rows: The first rows of the file.
        form: What each row has to hold.
    """
    present = list(dict.fromkeys(str(name) for row in rows for name, value in row.items() if value is not None))
    listed = ", ".join(name if len(name) <= 40 else name[:37] + "..." for name in present) or "none"
    if column := _ranked_list(rows, present):
        example = "prompt, chosen (the first of two answers) and rejected (the second)"
        return DataError(
            f"the column {column!r} holds several answers of each prompt with their ranks: this objective learns from "
            f"{_NEEDED[form]}; fix: write each two answers of a prompt as a row with {example}"
        )
    if verdict := next((name for name in VERDICTS if name in present), None):
        return DataError(
            f"the column {verdict!r} says which of two answers is better, and the columns of the answers are not clear; fix: "
            "name them, data.columns: {prompt: ..., first: ..., second: ..., verdict: ...}"
        )
    if {"completions", "labels"} <= set(present):
        return DataError(
            "the columns completions, labels rate the steps of an answer, and no objective of this version learns from rated "
            f"steps; fix: write rows of {_NEEDED[form]}"
        )
    if form == "rated" and (column := next((name for name in present if name.lower() in SCORES), None)):
        return DataError(
            f"the column {column!r} holds numbers, and this objective learns from {_NEEDED[form]}; fix: write true or false, for good "
            "or bad, into a column label; where the best and worst answers to one prompt are known, pairs teach more"
        )
    fix = f"name the columns, data.columns: {_NAMED[form]}, or compose the prompt with {COMPOSED}"
    held, what = _contents(rows)
    if held is None or held == form:
        return DataError(
            f"the columns {listed} do not hold {_NEEDED[form]}, from which this objective learns; fix: {fix}"
        )
    return DataError(
        f"the columns {listed} hold {what}: this objective learns from {_NEEDED[form]}; "
        f"fix: {ENTRY_POINTS[held]} takes these rows; or {fix}"
    )


def wrong_layout(layout: str, form: RowForm) -> DataError:
    """Return the error for a ``data.layout`` whose rows hold something else than ``form``."""
    layouts = ", ".join(FORM_LAYOUTS[form])
    fix = f"fix: remove data.layout, or pick one of: auto, {layouts}"
    if layout not in LAYOUTS:
        return DataError(f"{layout!r} is not a known layout; {fix}")
    held = next(held for held, names in FORM_LAYOUTS.items() if layout in names)
    return DataError(
        f"data.layout: {layout}: this objective learns from {_NEEDED[form]}; {fix}; {ENTRY_POINTS[held]} takes rows of this layout"
    )


def _contents(rows: Rows) -> tuple[RowForm | None, str]:
    """Return what the rows of a file hold, as a form and in words; no form where that is not clear."""
    file = FormColumns(rows)
    if any(file.layout(name) for name in (PREFERENCE, RANKED, JUDGED)):
        return "pairs", "pairs of a better and a worse answer"
    if file.layout(RATED):
        return "rated", "answers that are rated good or bad"
    if asks_only(rows):
        return "prompts", _ASKED
    try:
        is_text = detect_layout(rows).name == TEXT
    except DataError:
        return ("prompts", _ASKED) if file.layout(PROMPTS) else (None, "")
    return "answers", "plain text" if is_text else "one answer for each prompt"


def _ranked_list(rows: Rows, present: Sequence[str]) -> str | None:
    """Return the column that holds lists of answers with a rank each, as Nectar and UltraFeedback have them."""
    for name in _RANKED_LISTS:
        values = [row[name] for row in rows if name in present and row.get(name)]
        answers = [answer for value in values if isinstance(value, list) for answer in value]
        if answers and all(isinstance(answer, Mapping) and _RANKS & answer.keys() for answer in answers):
            return name
    return None
