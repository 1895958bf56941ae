"""Decide how a file of pairs, of rated answers or of prompts is read. Standard library only."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mlflow_finetune_plugin.data.columns.offers import columns_fix
from mlflow_finetune_plugin.data.conversations.layouts import COMPOSED, PROMPTS, Layout, check_columns
from mlflow_finetune_plugin.data.conversations.row_forms.columns import FormColumns
from mlflow_finetune_plugin.data.conversations.row_forms.refusals import FORM_LAYOUTS, refusal, wrong_layout
from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.methods import RowForm

Rows = Sequence[Mapping[str, Any]]


_ASKING_PARTS = dict.fromkeys(("instruction", "messages", "conversations", "text"), "prompt") | {"output": "completion"}
"""The parts of the layouts of answers that hold a prompt, and its answer."""
_ASKING_LAYOUTS = ("alpaca", "messages", "sharegpt", "conversational", "prompt_completion", "label")


def form_layout(
    rows: Rows,
    form: RowForm,
    columns: Mapping[str, str],
    layout: str = "auto",
    composed: Collection[str] | None = None,
) -> Layout:
    """Return the layout of a file whose rows are pairs, rated answers or prompts.

    Args:
        rows: The first rows of the file.
        form: What each row has to hold.
        columns: The column of each part that the user named; the others are guessed.
        layout: ``auto``, or a layout's name; then only the columns are guessed.
        composed: The columns that ``data.prompt_template`` reads; None means that a column holds the prompt.

    Raises:
        DataError: the file has no such rows.
    """
    if form == "prompts":  # rows with answers hold prompts, too
        columns = {_ASKING_PARTS.get(part, part): column for part, column in columns.items()}
        layout = PROMPTS if layout in _ASKING_LAYOUTS else layout
    if layout != "auto" and layout not in FORM_LAYOUTS[form]:
        raise wrong_layout(layout, form)
    names = FORM_LAYOUTS[form] if layout == "auto" else (layout,)
    check_columns(columns, list(dict.fromkeys(str(name) for row in rows for name in row)), names)
    if composed is not None and "prompt" in columns:
        raise DataError(f"data.columns.prompt: {COMPOSED} composes the prompt; fix: remove one of them")
    file = FormColumns(rows, columns, composed)
    layouts = [file.layout(name) for name in names]
    detected = next((candidate for candidate in layouts if candidate is not None), None)
    if detected is None:
        raise refusal(rows, form)
    if prompts := file.possible_prompts(detected):
        raise DataError(
            f"{detected}: which column holds the prompt is not clear (others: {', '.join(prompts)}); fix: name it, "
            f"{columns_fix({'prompt': prompts[0]})}, or set data.ignore: [{', '.join(prompts)}] to take the words that both "
            "answers begin with as the prompt"
        )
    return detected
