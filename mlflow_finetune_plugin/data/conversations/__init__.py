"""Convert rows to conversations, choose the held-out rows, and render conversations with a chat template.

The room promises that texts stay verbatim and that a row is either converted completely or refused with a reason.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_finetune_plugin.data.conversations.conversion import Conversation as Conversation
    from mlflow_finetune_plugin.data.conversations.conversion import to_conversations as to_conversations
    from mlflow_finetune_plugin.data.conversations.layouts import Layout as Layout
    from mlflow_finetune_plugin.data.conversations.layouts import detect_layout as detect_layout
    from mlflow_finetune_plugin.data.conversations.row_faults import RowFault as RowFault
    from mlflow_finetune_plugin.data.conversations.split import Split as Split
    from mlflow_finetune_plugin.data.conversations.split import split_of_train as split_of_train
    from mlflow_finetune_plugin.data.conversations.templates import Template as Template

_MODULES = {
    "Conversation": "conversion",
    "Layout": "layouts",
    "RowFault": "row_faults",
    "Split": "split",
    "Template": "templates",
    "detect_layout": "layouts",
    "split_of_train": "split",
    "to_conversations": "conversion",
}

__all__ = [
    "Conversation",
    "Layout",
    "RowFault",
    "Split",
    "Template",
    "detect_layout",
    "split_of_train",
    "to_conversations",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
