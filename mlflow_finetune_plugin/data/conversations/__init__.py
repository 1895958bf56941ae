"""Convert rows to conversations, choose the held-out rows, and render conversations with a chat template.

The room promises that texts stay verbatim and that a row is either converted completely or refused with a reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.data.conversations.conversion import Conversation, to_conversations
    from mlflow_finetune_plugin.data.conversations.layouts import Layout, detect_layout
    from mlflow_finetune_plugin.data.conversations.row_faults import RowFault
    from mlflow_finetune_plugin.data.conversations.split import Split, split_of_train
    from mlflow_finetune_plugin.data.conversations.templates import Template

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

__getattr__ = names_on_first_use(
    __name__,
    {
        "Conversation": "conversion",
        "Layout": "layouts",
        "RowFault": "row_faults",
        "Split": "split",
        "Template": "templates",
        "detect_layout": "layouts",
        "split_of_train": "split",
        "to_conversations": "conversion",
    },
)
