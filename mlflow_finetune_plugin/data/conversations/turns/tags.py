"""Read turns whose fields and roles have other names, as LLaMA-Factory's ``tags`` name them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mlflow_finetune_plugin.data.conversations.row_faults import MISSING_FIELD, RowFault

ROLE_TAG, CONTENT_TAG = "role_tag", "content_tag"
_FIELDS = {ROLE_TAG: "from", CONTENT_TAG: "value"}
_ROLES = {
    "user_tag": "human",
    "assistant_tag": "gpt",
    "system_tag": "system",
    "observation_tag": "observation",
    "function_tag": "function_call",
}
TAGS = (*_FIELDS, *_ROLES)
"""The tags, each with the name that a field or a role has in the file. Without one it has ShareGPT's name."""


def check_tags(tags: Mapping[str, str]) -> None:
    """Raise ValueError for an unknown tag, and for two tags with one name."""
    unknown = sorted(set(tags) - set(TAGS))
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not a tag; fix: pick from: {', '.join(TAGS)}")
    for kind in (_FIELDS, _ROLES):
        names = [tags[tag] for tag in kind if tag in tags]
        if doubles := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two tags have the name {doubles[0]!r}; fix: give each another name")


def with_usual_names(row: Mapping[str, Any], columns: Iterable[str], tags: Mapping[str, str]) -> Mapping[str, Any]:
    """Return the row with ShareGPT's names in the turns of ``columns``: lists of turns, or one turn.

    Raises:
        RowFault: a turn lacks a field that the tags name.
    """
    held = {column: row[column] for column in columns if isinstance(row.get(column), list | dict)}
    return {
        **row,
        **{
            column: [_turn(turn, tags) for turn in value] if isinstance(value, list) else _turn(value, tags)
            for column, value in held.items()
        },
    }


def _turn(turn: Any, tags: Mapping[str, str]) -> Any:
    if not isinstance(turn, dict):
        return turn
    names = {usual: tags.get(tag, usual) for tag, usual in _FIELDS.items()}
    for name in names.values():
        if name not in turn:
            raise RowFault(MISSING_FIELD, name)
    others = {name: value for name, value in turn.items() if name not in (*names, *names.values())}
    renamed = {**others, **{usual: turn[name] for usual, name in names.items()}}
    roles = {tags[tag]: usual for tag, usual in _ROLES.items() if tag in tags}
    role = renamed["from"]
    return {**renamed, "from": roles.get(role, role)} if isinstance(role, str) else renamed
