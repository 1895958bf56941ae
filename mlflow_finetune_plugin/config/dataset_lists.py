"""List the files that a source stands for: those of a folder or a pattern, and of other tools' lists of data sets.

The lists are LLaMA-Factory's ``dataset_info.json`` and Axolotl's configuration. ``data/dataset_info.json#identity`` is one data set of LLaMA-Factory, ``axolotl.yml`` all ``datasets`` of an Axolotl
configuration. What an entry says about its files and columns is used; what has no equal here is refused by name.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mlflow_finetune_plugin.config.sections import DataFileSettings
from mlflow_finetune_plugin.data.sources.folders import data_files_of, set_name
from mlflow_finetune_plugin.errors import ConfigError, DataError

LLAMA_FACTORY = "dataset_info.json"
_ROLE_TAGS = {
    "user_tag": ("user", "human"),
    "assistant_tag": ("assistant", "gpt", "model", "chatbot", "bot"),
    "system_tag": ("system", "developer"),
    "observation_tag": ("tool", "function", "ipython", "observation"),
    "function_tag": ("function_call",),
}
"""The roles that turns are read with, by the tags that may name them otherwise."""
_YAML = (".yml", ".yaml")
_ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "system": "system", "history": "history"}
_LLAMA_FACTORY_KEYS = frozenset(("file_name", "hf_hub_url", "subset", "split", "formatting", "columns", "tags"))
_WITHOUT_EFFECT = frozenset(("ms_hub_url", "om_hub_url"))
"""The same data set on other hubs."""
_AXOLOTL_KEYS = frozenset(
    ("path", "type", "name", "split", "ds_type", "data_files", "field_messages", "field", "message_property_mappings")
)
_AXOLOTL_FIELDS = {
    "field_instruction": "instruction",
    "field_input": "input",
    "field_output": "output",
    "field_system": "system",
}
_AXOLOTL_DEFAULTS = {"roles_to_train": ["assistant"], "train_on_eos": "turn", "chat_template": "tokenizer_default"}
"""Settings that say what happens here anyway."""
_ROLE_AND_CONTENT = {"role": "role", "content": "content"}
_FROM_AND_VALUE = {"role": "from", "content": "value"}


def listed_files(file: DataFileSettings) -> list[DataFileSettings]:
    """Return the files that ``file`` stands for: those of its list, folder or pattern, or itself. Its path is absolute.

    Raises:
        ConfigError: the list cannot be read, has no such entry, or an entry has a setting without an equal here; or a folder or
            a pattern has no files.
    """
    path, _, name = file.path.partition("#")
    files = [file]
    if Path(path).name == LLAMA_FACTORY:
        files = [_of_llama_factory(file, Path(path), name)]
    elif Path(path).suffix in _YAML and "://" not in path and (Path(path).exists() or not glob.has_magic(path)):
        files = _of_axolotl(file, Path(path))
    return [member for entry in files for member in _members(entry)]


def _members(file: DataFileSettings) -> list[DataFileSettings]:
    """Return the files of a folder or a pattern, which are one task; or the file itself."""
    try:
        paths = data_files_of(file.path)
    except DataError as error:
        raise ConfigError([str(error)]) from error
    if paths == [file.path]:
        return [file]
    task = file.task or set_name(file.path)
    return [file.model_copy(update={"path": path, "task": task}) for path in paths]


def _of_llama_factory(file: DataFileSettings, path: Path, name: str) -> DataFileSettings:
    entries = _content(path, json.loads)
    if name not in entries:
        listed = ", ".join(map(str, list(entries)[:10]))
        raise ConfigError([f"{file.path}: name one of its data sets, {path.name}#NAME; fix: one of: {listed}"])
    where, entry = f"{path}#{name}", entries[name]
    if not isinstance(entry, dict):
        raise ConfigError([f"{where}: is not an object; fix: correct it"])
    if entry.get("ranking"):
        raise ConfigError(
            [f"{where}: ranking: preference pairs cannot be used for training; fix: name another data set"]
        )
    _check_keys(where, entry, _LLAMA_FACTORY_KEYS | _WITHOUT_EFFECT | {"ranking"})
    if "file_name" in entry:
        source = str(path.parent / entry["file_name"])
    elif "hf_hub_url" in entry:
        source = _hub_name(entry["hf_hub_url"], entry.get("subset"), entry.get("split"))
    else:
        raise ConfigError([f"{where}: has neither file_name nor hf_hub_url; fix: add one of them"])
    columns = {part: column for part, column in (entry.get("columns") or {}).items() if column is not None}
    tags = dict(entry.get("tags") or {})
    update: dict[str, Any] = {"path": source, "task": file.task or name}
    if entry.get("formatting", "alpaca") == "alpaca":
        _check_keys(f"{where}: columns", columns, frozenset(_ALPACA))
        update |= {"layout": "alpaca", "columns": {_ALPACA[part]: column for part, column in columns.items()}}
    elif entry["formatting"] in ("sharegpt", "openai"):
        update |= _llama_factory_turns(where, entry["formatting"], columns, tags)
    else:
        raise ConfigError(
            [f"{where}: formatting = {entry['formatting']!r}: not known; fix: name the file in data.train"]
        )
    return _updated(file, update)


def _llama_factory_turns(where: str, formatting: str, columns: dict[str, str], tags: dict[str, str]) -> dict[str, Any]:
    _check_keys(f"{where}: columns", columns, frozenset(("messages", "system", "tools")))
    if columns.get("tools", "tools") != "tools":
        raise ConfigError([f"{where}: columns.tools = {columns['tools']!r}: must be 'tools'; fix: rename the column"])
    for tag, names in _ROLE_TAGS.items():
        if tag in tags and tags[tag] not in names:
            raise ConfigError(
                [
                    f"{where}: tags.{tag} = {tags[tag]!r}: has no equal here; fix: write these turns as {names[0]!r} in the file"
                ]
            )
    usual = _ROLE_AND_CONTENT if formatting == "openai" else _FROM_AND_VALUE
    keys = {"role": tags.get("role_tag", usual["role"]), "content": tags.get("content_tag", usual["content"])}
    column = columns.get("messages", "messages" if formatting == "openai" else "conversations")
    system = {"system": columns["system"]} if "system" in columns else {}
    return _turns(where, keys, column, system)


def _of_axolotl(file: DataFileSettings, path: Path) -> list[DataFileSettings]:
    entries = _content(path, yaml.safe_load).get("datasets")
    if not isinstance(entries, list) or not entries:
        raise ConfigError([f"{path}: has no list datasets; fix: name data files, or an Axolotl configuration"])
    files = []
    for number, entry in enumerate(entries):
        where = f"{path}: datasets[{number}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            raise ConfigError([f"{where}: has no path; fix: add it"])
        unusual = {key: value for key, value in entry.items() if _AXOLOTL_DEFAULTS.get(key) != value}
        _check_keys(where, unusual, _AXOLOTL_KEYS)
        files += [_updated(file, {"path": source, **_axolotl_layout(where, entry)}) for source in _sources(path, entry)]
    return files


def _axolotl_layout(where: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    kind = entry.get("type")
    if kind == "alpaca":
        return {"layout": "alpaca"}
    if kind == "completion":
        return {"layout": "text", "columns": {"text": entry.get("field", "text")}}
    if kind in ("chat_template", "sharegpt"):
        usual = _ROLE_AND_CONTENT if kind == "chat_template" else _FROM_AND_VALUE
        keys = {**usual, **(entry.get("message_property_mappings") or {})}
        column = entry.get("field_messages", "messages" if kind == "chat_template" else "conversations")
        return _turns(where, keys, column, {})
    if isinstance(kind, dict):
        return _axolotl_fields(where, kind)
    known = "alpaca, completion, chat_template, sharegpt, or an object with field_instruction and field_output"
    raise ConfigError(
        [
            f"{where}: type = {kind!r}: has no equal here; fix: use {known}, or name the file in data.train, with its columns"
        ]
    )


def _axolotl_fields(where: str, kind: Mapping[str, Any]) -> dict[str, Any]:
    """Return the layout of a type that names its columns. Its prompt format is the base's chat template here."""
    if composed := sorted(key for key in kind if key not in _AXOLOTL_FIELDS and kind[key] is not None):
        raise ConfigError(
            [
                f"{where}: type.{composed[0]}: has no equal here; fix: remove it, or name the file in data.train and compose "
                "its prompts with data.prompt_template"
            ]
        )
    columns = {part: kind[key] for key, part in _AXOLOTL_FIELDS.items() if kind.get(key)}
    return {"layout": "alpaca", "columns": columns}


def _turns(where: str, keys: Mapping[str, str], column: str, system: Mapping[str, str]) -> dict[str, Any]:
    """Return the layout of turns whose role and content have these keys."""
    for layout, part, known in (
        ("messages", "messages", _ROLE_AND_CONTENT),
        ("sharegpt", "conversations", _FROM_AND_VALUE),
    ):
        if keys == known:
            return {"layout": layout, "columns": {part: column, **system}}
    raise ConfigError(
        [
            f"{where}: turns with the keys {', '.join(keys.values())}; fix: write them as role and content, or as from and value"
        ]
    )


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
    return [_hub_name(entry["path"], entry.get("name"), entry.get("split"))]


def _exists(path: Path) -> bool:
    return path.exists() or (glob.has_magic(str(path)) and bool(glob.glob(str(path), recursive=True)))


def _hub_name(name: str, config: str | None, split: str | None) -> str:
    return ":".join(["hf", name, *([config] if config else []), split or "train"])


def _updated(file: DataFileSettings, update: dict[str, Any]) -> DataFileSettings:
    """Return the file with what the list says, unless the recipe itself says it."""
    stated = {key: getattr(file, key) for key in ("layout", "columns", "task") if getattr(file, key) is not None}
    return file.model_copy(update={**update, **stated})


def _check_keys(where: str, entry: Mapping[str, Any], known: frozenset[str]) -> None:
    unknown = sorted(str(key) for key in entry.keys() - known if entry[key] not in (None, False))
    if unknown:
        raise ConfigError([f"{where}: {unknown[0]}: has no equal here; fix: name the file in data.train instead"])


def _content(path: Path, parse: Any) -> dict[str, Any]:
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: cannot read the file: {error.strerror or error}; fix: check the path"]) from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError([f"{path}: cannot be parsed: {' '.join(str(error).split())}; fix: correct it"]) from error
    if not isinstance(content, dict):
        raise ConfigError([f"{path}: is not an object with data sets; fix: name a data file"])
    return content
