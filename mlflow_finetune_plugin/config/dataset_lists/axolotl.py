"""All ``datasets`` of an Axolotl configuration."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mlflow_finetune_plugin.config.dataset_lists.axolotl_preferences import ENTRY_KEYS, is_preference, preference_layout
from mlflow_finetune_plugin.config.dataset_lists.axolotl_turns import ROLE_AND_CONTENT, turns_layout
from mlflow_finetune_plugin.config.dataset_lists.entries import check_keys, content_of, hub_name, updated
from mlflow_finetune_plugin.config.sections import DataFileSettings
from mlflow_finetune_plugin.errors import ConfigError

_INSTRUCTION_FIELDS = {
    "field_instruction": "instruction",
    "field_input": "input",
    "field_output": "output",
    "field_system": "system",
}
_DEFAULTS = {"roles_to_train": ["assistant"], "train_on_eos": "turn", "chat_template": "tokenizer_default"}
"""Settings that say what happens here anyway."""
_REFUSED = {
    "zephyr.nectar": "it ranks several answers; fix: write each two answers as a row with chosen and rejected",
    "passthrough.default": "its rows are formatted prompts, and the base's chat template writes them here; fix: a file with the "
    "text of prompts and answers, in data.train",
}
_FROM_AND_VALUE = {"role": "from", "content": "value"}


def axolotl_files(file: DataFileSettings, path: Path) -> list[DataFileSettings]:
    content = content_of(path, yaml.safe_load)
    entries = content.get("datasets")
    if not isinstance(entries, list) or not entries:
        raise ConfigError([f"{path}: has no list datasets; fix: name data files, or an Axolotl configuration"])
    files = []
    for number, entry in enumerate(entries):
        where = f"{path}: datasets[{number}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            raise ConfigError([f"{where}: has no path; fix: add it"])
        unusual = {key: value for key, value in entry.items() if _DEFAULTS.get(key) != value}
        if is_preference(entry.get("type")):
            layout = preference_layout(where, unusual, content.get("rl"))
        else:
            check_keys(where, unusual, ENTRY_KEYS)
            layout = _layout(where, entry)
        files += [updated(file, {"path": source, **layout}) for source in _sources(path, entry)]
    return files


def _layout(where: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    kind = entry.get("type")
    if kind == "alpaca":
        return {"layout": "alpaca"}
    if kind == "completion":
        return {"layout": "text", "columns": {"text": entry.get("field", "text")}}
    if kind in ("chat_template", "sharegpt"):
        usual = ROLE_AND_CONTENT if kind == "chat_template" else _FROM_AND_VALUE
        keys = {**usual, **(entry.get("message_property_mappings") or {})}
        column = entry.get("field_messages", "messages" if kind == "chat_template" else "conversations")
        return turns_layout(where, keys, column)
    if isinstance(kind, dict):
        return _fields_layout(where, kind)
    if why := _REFUSED.get(str(kind)):
        raise ConfigError([f"{where}: type = {kind!r}: has no equal here, because {why}"])
    known = (
        "alpaca, completion, chat_template, sharegpt, a type of preferences such as chatml.intel, or an object with "
        "field_instruction and field_output"
    )
    raise ConfigError(
        [
            f"{where}: type = {kind!r}: has no equal here; fix: use {known}, or name the file in data.train, with its columns"
        ]
    )


def _fields_layout(where: str, kind: Mapping[str, Any]) -> dict[str, Any]:
    """Return the layout of a type that names its columns. Its prompt format is the base's chat template here."""
    if composed := sorted(key for key in kind if key not in _INSTRUCTION_FIELDS and kind[key] is not None):
        raise ConfigError(
            [
                f"{where}: type.{composed[0]}: has no equal here; fix: remove it, or name the file in data.train and compose "
                "its prompts with data.prompt_template"
            ]
        )
    columns = {part: kind[key] for key, part in _INSTRUCTION_FIELDS.items() if kind.get(key)}
    return {"layout": "alpaca", "columns": columns}


def _sources(path: Path, entry: Mapping[str, Any]) -> list[str]:
    """Return the files of an Axolotl entry. Its paths start in Axolotl's folder, or in that of its configuration."""
    names = entry.get("data_files") or entry["path"]
    names = names if isinstance(names, list) else [names]
    files = [next((str(base / n) for base in (path.parent, Path.cwd()) if _exists(base / n)), None) for n in names]
    if all(files):
        return [file for file in files if file is not None]
    if entry.get("data_files") or Path(str(entry["path"])).suffix:
        missing = names[files.index(None)]
        raise ConfigError(
            [f"{path}: the file {missing} does not exist; fix: correct its path, or start in Axolotl's folder"]
        )
    return [hub_name(entry["path"], entry.get("name"), entry.get("split"))]


def _exists(path: Path) -> bool:
    return path.exists() or (glob.has_magic(str(path)) and bool(glob.glob(str(path), recursive=True)))
