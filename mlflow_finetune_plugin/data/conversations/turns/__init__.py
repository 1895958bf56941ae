"""Read the turns of a conversation: their roles, fields, tags, tool calls and marks, and render them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.data.conversations.turns.chat import (
        as_context,
        in_turn,
        is_learnt,
        role_turn,
        sharegpt_turn,
        unmarked,
        whole_text,
        with_tools,
    )
    from mlflow_finetune_plugin.data.conversations.turns.fields import unread_fields, without_fields
    from mlflow_finetune_plugin.data.conversations.turns.rendered import (
        STOP_INSIDE,
        RenderedTurn,
        checked_turns,
        default_turns,
    )
    from mlflow_finetune_plugin.data.conversations.turns.tags import check_tags, with_usual_names
    from mlflow_finetune_plugin.data.conversations.turns.tool_calls import TOOL_COLUMNS, served_tool, tools_of

__all__ = [
    "STOP_INSIDE",
    "TOOL_COLUMNS",
    "RenderedTurn",
    "as_context",
    "check_tags",
    "checked_turns",
    "default_turns",
    "in_turn",
    "is_learnt",
    "role_turn",
    "served_tool",
    "sharegpt_turn",
    "tools_of",
    "unmarked",
    "unread_fields",
    "whole_text",
    "with_tools",
    "with_usual_names",
    "without_fields",
]

__getattr__ = names_on_first_use(
    __name__,
    {
        "RenderedTurn": "rendered",
        "STOP_INSIDE": "rendered",
        "TOOL_COLUMNS": "tool_calls",
        "as_context": "chat",
        "check_tags": "tags",
        "checked_turns": "rendered",
        "default_turns": "rendered",
        "in_turn": "chat",
        "is_learnt": "chat",
        "role_turn": "chat",
        "served_tool": "tool_calls",
        "sharegpt_turn": "chat",
        "tools_of": "tool_calls",
        "unmarked": "chat",
        "unread_fields": "fields",
        "whole_text": "chat",
        "with_tools": "chat",
        "with_usual_names": "tags",
        "without_fields": "fields",
    },
)
