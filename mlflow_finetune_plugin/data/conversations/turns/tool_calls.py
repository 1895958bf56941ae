"""Read the tools of a conversation and the calls of a turn, in the forms of OpenAI, Mistral, LLaMA-Factory and others.

All become OpenAI's form, with the arguments as an object: chat templates write that, and engines hand it to them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mlflow_finetune_plugin.data.conversations.row_faults import WRONG_TYPE, RowFault
from mlflow_finetune_plugin.data.conversations.texts import excerpt_of

TOOL_COLUMNS = ("tools", "functions")
"""The columns that hold the tools of a conversation; ``functions`` is OpenAI's earlier name."""


def tools_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tools of a row in OpenAI's form; empty where it has none. They may be a JSON text.

    Raises:
        RowFault: they are not a list of functions.
    """
    for column in TOOL_COLUMNS:
        value = _from_json(row.get(column), column)
        if not value:
            continue
        if not isinstance(value, list):
            raise RowFault(WRONG_TYPE, f"{column} is {excerpt_of(value)}, not a list")
        return [_tool(tool, column) for tool in value]
    return []


def calls_of(turn: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the calls of a turn in OpenAI's form; empty where it calls nothing.

    Raises:
        RowFault: a call has no name, or its arguments are not a JSON object.
    """
    calls = _from_json(turn.get("tool_calls"), "tool_calls") or []
    if not isinstance(calls, list):
        raise RowFault(WRONG_TYPE, f"tool_calls is {excerpt_of(calls)}, not a list")
    if turn.get("function_call"):  # OpenAI's earlier name for a single call
        calls = [*calls, turn["function_call"]]
    return [_call(call) for call in calls]


def named_calls(text: Any) -> list[dict[str, Any]]:
    """Return the calls of LLaMA-Factory's ``function_call`` turn, whose text is a JSON object or a list of them."""
    value = _from_json(text, "function_call")
    return [_call(call) for call in (value if isinstance(value, list) else [value])]


def served_tool(function: Mapping[str, Any]) -> dict[str, Any]:
    """Return a function as a chat template gets it from a server, in this order and with null for what is missing.

    It is the form that vLLM's request model has. Other fields of a function do not reach the template there.
    """
    parts = {key: function.get(key) for key in ("name", "description", "parameters")}
    strict = {"strict": function["strict"]} if function.get("strict") is not None else {}
    return {"type": "function", "function": {**parts, **strict}}


def _tool(tool: Any, column: str) -> dict[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowFault(WRONG_TYPE, f"{column} holds {excerpt_of(tool)}, not a function with a name")
    return served_tool(function)


def _call(call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowFault(WRONG_TYPE, f"a tool call is {excerpt_of(call)}, not a function with a name")
    arguments = _from_json(function.get("arguments"), f"the arguments of {function['name']}")
    arguments = {} if arguments is None or arguments == "" else arguments
    if not isinstance(arguments, dict):
        raise RowFault(WRONG_TYPE, f"the arguments of {function['name']} are {excerpt_of(arguments)}, not an object")
    identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**identity, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _from_json(value: Any, name: str) -> Any:
    if not isinstance(value, str) or not value.strip():
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowFault(WRONG_TYPE, f"{name} is {excerpt_of(value)}, which is not JSON: {error}") from error
