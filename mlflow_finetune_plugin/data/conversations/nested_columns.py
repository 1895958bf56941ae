"""Unpack columns that hold an object or a list: JSON texts in the cells of a CSV file, translations, ms-swift's exchanges.

A ``translation`` column of {"en": ..., "fr": ...} becomes the columns ``translation.en`` and ``translation.fr``, so that
``data.columns`` can name the direction. An exchange of {"human": ..., "assistant": ...} becomes two turns.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

TRANSLATION = "translation"
_EXCHANGES = "conversation"
LIST_COLUMNS = frozenset(
    (
        *("messages", "conversations", "conversation", "contents", "dialogue", "dialog", "chat", "turns"),
        *("history", "instances", "segments", TRANSLATION),
    )
)
"""Columns that hold a list or an object in every layout that has them."""
LIST_PARTS = ("messages", "conversations", "history", "instances")
"""The parts of layouts that are lists, for columns that the user named."""


def unpacked(row: Mapping[str, Any], lists: Collection[str]) -> Mapping[str, Any]:
    """Return the row with its JSON texts parsed and its translations as columns.

    Args:
        row: A row of a file.
        lists: The columns of which a text may be JSON. A text that is not stays as it is, and is a fault later.
    """
    texts = [name for name in row.keys() & lists if isinstance(row[name], str) and row[name].lstrip()[:1] in ("[", "{")]
    if texts:
        row = {**row, **{name: _parsed(row[name]) for name in texts}}
    exchanges = row.get(_EXCHANGES)
    if isinstance(exchanges, list) and exchanges and all(_is_exchange(exchange) for exchange in exchanges):
        row = {**row, _EXCHANGES: [turn for exchange in exchanges for turn in _turns(exchange)]}
    pair = row.get(TRANSLATION)
    if not isinstance(pair, Mapping) or TRANSLATION not in lists:
        return row
    others = {name: value for name, value in row.items() if name != TRANSLATION}
    return {**others, **{f"{TRANSLATION}.{language}": text for language, text in pair.items()}}


def _is_exchange(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"human", "assistant"}


def _turns(exchange: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": exchange[name]} for role, name in (("user", "human"), ("assistant", "assistant"))]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
