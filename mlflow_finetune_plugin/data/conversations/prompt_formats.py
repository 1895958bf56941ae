"""Recognise texts that were written in a prompt format, where the chat template of the base would write another one.

As plain text the model would learn the questions of such a conversation too, and as a prompt its markers would be inside a user
turn. Served prompts have neither.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_finetune_plugin.data.conversations.layouts import TEXT, Layout
from mlflow_finetune_plugin.errors import DataError

_FORMATS = {
    "Llama 2 and Mistral": r"\[INST\].*\[/INST\]",
    "Llama 3": r"<\|start_header_id\|>user<\|end_header_id\|>.*<\|start_header_id\|>assistant",
    "ChatML": r"<\|im_start\|>user\b.*<\|im_start\|>assistant",
    "Gemma": r"<start_of_turn>user\b.*<start_of_turn>model",
    "Zephyr": r"<\|user\|>.*<\|assistant\|>",
    "Alpaca": r"### Instruction:.*### Response:",
    "Guanaco": r"### Human:.*### Assistant:",
    "Vicuna": r"\bUSER: .*\bASSISTANT:",
    "Anthropic's completions": r"(\A|\n\n)Human: .*\n\nAssistant:",
}
_PATTERNS = {name: re.compile(pattern, re.DOTALL) for name, pattern in _FORMATS.items()}


def check_formats(layout: Layout, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise DataError where each text, or each prompt, is in one of the known prompt formats.

    Args:
        layout: The layout that was recognised.
        rows: The first rows of the file.
    """
    if layout.name == TEXT:
        column, what = layout.columns["text"], "the model would learn the questions too"
    elif layout.name == "prompt_completion":
        column, what = layout.columns["prompt"], "its markers would be inside a user turn of another format"
    else:
        return
    values = [row[column] for row in rows if row.get(column) is not None]
    name = next((name for name, pattern in _PATTERNS.items() if _all_match(pattern, values)), None)
    if name is not None:
        raise DataError(
            f"the column {column!r} is in the format of {name}: {what}, and a served model gets its prompts from a chat "
            f"template; fix: write each row as messages, or set data.layout: {layout.name} to train on the text as it is"
        )


def _all_match(pattern: re.Pattern[str], values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(value, str) and pattern.search(value) for value in values)
