"""What the lists of different tools have in common: their content, checked keys, and names of data sets on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mlflow_finetune_plugin.config.sections import DataFileSettings
from mlflow_finetune_plugin.errors import ConfigError


def hub_name(name: str, config: str | None, split: str | None) -> str:
    return ":".join(["hf", name, *([config] if config else []), split or "train"])


def updated(file: DataFileSettings, update: dict[str, Any]) -> DataFileSettings:
    """Return the file with what the list says, unless the recipe itself says it."""
    stated = {
        key: getattr(file, key) for key in ("layout", "columns", "tags", "task") if getattr(file, key) is not None
    }
    return file.model_copy(update={**update, **stated})


def check_keys(where: str, entry: Mapping[str, Any], known: frozenset[str]) -> None:
    unknown = sorted(str(key) for key in entry.keys() - known if entry[key] not in (None, False))
    if unknown:
        raise ConfigError([f"{where}: {unknown[0]}: has no equal here; fix: name the file in data.train instead"])


def content_of(path: Path, parse: Any) -> dict[str, Any]:
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: cannot read the file: {error.strerror or error}; fix: check the path"]) from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError([f"{path}: cannot be parsed: {' '.join(str(error).split())}; fix: correct it"]) from error
    if not isinstance(content, dict):
        raise ConfigError([f"{path}: is not an object with data sets; fix: name a data file"])
    return content
