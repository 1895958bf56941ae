"""Refuse rows whose columns say how the row is trained on or rendered, where this version cannot do what they say.

Other tools read these columns: Axolotl and ms-swift leave the row out of the loss or weight it, TRL hands
``chat_template_kwargs`` to the template, ms-swift marks places of an image with ``objects``, NeMo leaves the turns of a role out of
the loss (``mask``), OpenAI writes ``response_format`` into the prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from mlflow_finetune_plugin.data.conversations.row_faults import UNSUPPORTED_FIELD, RowFault

ROW_MARKS = frozenset(
    (
        *("weight", "sample_weight", "loss", "loss_scale", "loss_mask", "train", "training", "trainable", "mask"),
        *("train_on_inputs", "objects", "chat_template_kwargs", "response_format", "tool_choice"),
        *("assistant_masks", "completion_mask", "assistant_mask"),
    )
)
"""The columns that ``check_row_marks`` reads."""

_SWITCHES = ("loss", "train", "training", "trainable")
_MASKS = ("assistant_masks", "completion_mask", "assistant_mask", "loss_mask")
_WEIGHTS = ("weight", "sample_weight", "loss_scale")
_METHARME = re.compile(r"\s*<\|(system|user)\|>.*<\|model\|>\s*", re.DOTALL)


def check_row_marks(row: Mapping[str, Any], used: Collection[str]) -> None:
    """Raise RowFault for a mark that has an effect in other tools and none here.

    Args:
        row: A row of a file.
        used: The columns of its layout, which are not marks.
    """
    for column in sorted(row.keys() & ROW_MARKS - set(used)):
        if reason := _reason(column, row[column]):
            raise RowFault(
                UNSUPPORTED_FIELD, f"{column}: {reason}; data.ignore: [{column}] trains as if it were not there"
            )


def check_markers(prompt: Any, column: str) -> None:
    """Raise RowFault for a prompt in the format of Metharme, which would be inside a user turn of another format."""
    if isinstance(prompt, str) and "<|model|>" in prompt and _METHARME.fullmatch(prompt):
        raise RowFault(
            UNSUPPORTED_FIELD,
            f"{column}: the markers <|system|>, <|user|> and <|model|> of Metharme; write each row as messages, one turn for "
            "each marker, because a served model gets its prompts from a chat template",
        )


def _reason(column: str, value: Any) -> str | None:
    """Return why a value cannot be used; None where it changes nothing."""
    if value is None or value in ("", [], {}):
        return None
    if column in _WEIGHTS:
        return None if str(value).lower() in ("1", "1.0", "true") else f"{value!r}, and every row counts the same here"
    if column in _MASKS and isinstance(value, list):
        return "it marks single tokens, and only whole turns can be left out of the loss"
    if column in _SWITCHES or column in _MASKS:
        return "false, and every row carries loss here" if str(value).lower() in ("0", "0.0", "false") else None
    if column == "mask":
        is_role = isinstance(value, str) and value.lower() in ("assistant", "gpt", "bot", "model")
        return f"{value!r}, and the turns of the assistant are what is learned here" if is_role else None
    if column == "response_format":
        kind = value.get("type") if isinstance(value, dict) else value
        return None if kind == "text" else f"{kind}, which OpenAI writes into the prompt; write it into a system turn"
    if column == "tool_choice":
        return None if value in ("auto", "none") else f"{json.dumps(value)}, and a template writes no choice of a tool"
    if column == "train_on_inputs":
        return "true, and only answers are trained on here" if str(value).lower() in ("1", "true") else None
    if column == "objects":
        return "places within a picture, which this version does not read" if isinstance(value, dict | list) else None
    shown = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
    return f"{shown}, and the settings of a template are the same for all rows: set data.chat_template_kwargs"
