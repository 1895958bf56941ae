"""Data sets of LLaMA-Factory's ``dataset_info.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.config.dataset_lists.entries import check_keys, content_of, hub_name, updated
from mlflow_finetune_plugin.config.sections import DataFileSettings
from mlflow_finetune_plugin.data.conversations.turns.tags import check_tags
from mlflow_finetune_plugin.errors import ConfigError

LLAMA_FACTORY = "dataset_info.json"
_OPENAI_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
    "observation_tag": "tool",
}
"""The tags of turns in OpenAI's form, which the layout ``messages`` reads."""
_MEDIA = ("images", "videos", "audios")
_ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "system": "system", "history": "history"}
_KEYS = frozenset(("file_name", "hf_hub_url", "subset", "split", "formatting", "columns", "tags"))
_WITHOUT_EFFECT = frozenset(("ms_hub_url", "om_hub_url"))
"""The same data set on other hubs."""


def llama_factory_file(file: DataFileSettings, path: Path, name: str) -> DataFileSettings:
    entries = content_of(path, json.loads)
    if name not in entries:
        listed = ", ".join(map(str, list(entries)[:10]))
        raise ConfigError([f"{file.path}: name one of its data sets, {path.name}#NAME; fix: one of: {listed}"])
    where, entry = f"{path}#{name}", entries[name]
    if not isinstance(entry, dict):
        raise ConfigError([f"{where}: is not an object; fix: correct it"])
    check_keys(where, entry, _KEYS | _WITHOUT_EFFECT | {"ranking"})
    if "file_name" in entry:
        source = str(path.parent / entry["file_name"])
    elif "hf_hub_url" in entry:
        source = hub_name(entry["hf_hub_url"], entry.get("subset"), entry.get("split"))
    else:
        raise ConfigError([f"{where}: has neither file_name nor hf_hub_url; fix: add one of them"])
    columns = _stated(entry.get("columns"))
    _check_media(where, columns)
    update: dict[str, Any] = {"path": source, "task": file.task or name}
    formatting = entry.get("formatting", "alpaca")
    compared: dict[str, str] = {
        part: columns.pop(part) for part in ("chosen", "rejected", "kto_tag") if part in columns
    }
    if formatting == "alpaca":
        check_keys(f"{where}: columns", columns, frozenset(_ALPACA))
        update |= {"layout": "alpaca", "columns": {_ALPACA[part]: column for part, column in columns.items()}}
    elif formatting in ("sharegpt", "openai"):
        update |= _turns(where, formatting, columns, _stated(entry.get("tags")))
    else:
        raise ConfigError([f"{where}: formatting = {formatting!r}: not known; fix: name the file in data.train"])
    if entry.get("ranking") or compared:
        update |= _preferences(update["columns"], compared)
    return updated(file, update)


def _stated(names: Mapping[str, Any] | None) -> dict[str, str]:
    return {part: name for part, name in (names or {}).items() if name is not None}


def _check_media(where: str, columns: Mapping[str, str]) -> None:
    for part in _MEDIA:
        if part in columns:
            raise ConfigError(
                [
                    f"{where}: columns.{part} = {columns[part]!r}: this version trains on text only, and the turns refer to "
                    f"the {part}; fix: name another data set"
                ]
            )


def _preferences(columns: Mapping[str, str], compared: Mapping[str, str]) -> dict[str, Any]:
    """Return the layout of pairs or ratings.

    Args:
        columns: The columns of the same entry as answers: those of Alpaca, or of turns.
        compared: Its columns ``chosen``, ``rejected`` and ``kto_tag``. Ranked answers without them are one list.
    """
    chat = next((columns[part] for part in ("messages", "conversations") if part in columns), None)
    before = {part: columns[part] for part in ("system", "history", "input") if part in columns}
    prompt = chat or columns.get("instruction", "instruction")
    if "kto_tag" in compared:
        answer = (
            {"prompt": prompt, "completion": columns.get("output", "output")} if chat is None else {"messages": chat}
        )
        return {"layout": "rated", "columns": {**before, **answer, "label": compared["kto_tag"]}}
    if compared:
        return {"layout": "preference", "columns": {**before, "prompt": prompt, **compared}}
    return {"layout": "ranked", "columns": {**before, "prompt": prompt, "output": columns.get("output", "output")}}


def _turns(where: str, formatting: str, columns: dict[str, str], tags: dict[str, str]) -> dict[str, Any]:
    check_keys(f"{where}: columns", columns, frozenset(("messages", "system", "tools")))
    if columns.get("tools", "tools") != "tools":
        raise ConfigError([f"{where}: columns.tools = {columns['tools']!r}: must be 'tools'; fix: rename the column"])
    try:
        check_tags(tags)
    except ValueError as error:
        raise ConfigError([f"{where}: tags: {error}"]) from error
    tags = {**_OPENAI_TAGS, **tags} if formatting == "openai" else tags
    column = columns.get("messages", "messages" if formatting == "openai" else "conversations")
    return _tagged_turns(column, tags, {"system": columns["system"]} if "system" in columns else {})


def _tagged_turns(column: str, tags: Mapping[str, str], system: Mapping[str, str]) -> dict[str, Any]:
    """Return the layout of turns with these names: OpenAI's form, ShareGPT's, or ShareGPT's with other names."""
    if {"role_tag", "content_tag", "user_tag", "assistant_tag"} <= tags.keys() and tags.items() <= _OPENAI_TAGS.items():
        return {"layout": "messages", "columns": {"messages": column, **system}}
    update = {"layout": "sharegpt", "columns": {"conversations": column, **system}}
    return {**update, "tags": dict(tags)} if tags else update
