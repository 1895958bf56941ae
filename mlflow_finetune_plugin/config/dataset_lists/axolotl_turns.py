"""Turns whose fields an Axolotl entry names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlflow_finetune_plugin.config.dataset_lists.entries import check_keys

ROLE_AND_CONTENT = {"role": "role", "content": "content"}
_TAGS = {"role": "role_tag", "content": "content_tag"}
_FIELDS = frozenset(_TAGS)


def turns_layout(where: str, keys: Mapping[str, str], column: str) -> dict[str, Any]:
    """Return the layout of turns whose fields have these names."""
    check_keys(f"{where}: message_property_mappings", {k: v for k, v in keys.items() if k != v}, _FIELDS)
    if {**ROLE_AND_CONTENT, **keys} == {**keys, **ROLE_AND_CONTENT}:
        return {"layout": "messages", "columns": {"messages": column}}
    tags = {} if keys["role"] == "from" and keys["content"] == "value" else {_TAGS[k]: keys[k] for k in _TAGS}
    return {"layout": "sharegpt", "columns": {"conversations": column}, **({"tags": tags} if tags else {})}
