"""Prompt sets of a playground, and each voter's progress in them.

A voter gets each prompt of a set once per pair of versions, and never a held-out row that one of the sides was trained
on.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradio_app.prompts.held_out import held_out_set
    from gradio_app.prompts.progress import JudgedPrompts, Progress
    from gradio_app.prompts.walk import HELD_OUT, PromptWalk, next_prompt

__all__ = ["HELD_OUT", "JudgedPrompts", "Progress", "PromptWalk", "held_out_set", "next_prompt"]
_FILES = {
    "HELD_OUT": "walk",
    "JudgedPrompts": "progress",
    "Progress": "progress",
    "PromptWalk": "walk",
    "held_out_set": "held_out",
    "next_prompt": "walk",
}


def __getattr__(name: str) -> Any:
    """Import a name on first use, because votes and prompt sets import much of the plugin."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
