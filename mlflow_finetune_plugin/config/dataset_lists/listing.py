"""List the files that a source stands for: those of a folder or a pattern, and of other tools' lists of data sets."""

from __future__ import annotations

import glob
from pathlib import Path

from mlflow_finetune_plugin.config.dataset_lists.axolotl import axolotl_files
from mlflow_finetune_plugin.config.dataset_lists.llama_factory import LLAMA_FACTORY, llama_factory_file
from mlflow_finetune_plugin.config.sections import DataFileSettings
from mlflow_finetune_plugin.data.sources.folders import data_files_of, set_name
from mlflow_finetune_plugin.errors import ConfigError, DataError

_YAML = (".yml", ".yaml")


def listed_files(file: DataFileSettings) -> list[DataFileSettings]:
    """Return the files that ``file`` stands for: those of its list, folder or pattern, or itself. Its path is absolute.

    Raises:
        ConfigError: the list cannot be read, has no such entry, or an entry has a setting without an equal here; or a folder or
            a pattern has no files.
    """
    path, _, name = file.path.partition("#")
    files = [file]
    if Path(path).name == LLAMA_FACTORY:
        files = [llama_factory_file(file, Path(path), name)]
    elif Path(path).suffix in _YAML and "://" not in path and (Path(path).exists() or not glob.has_magic(path)):
        files = axolotl_files(file, Path(path))
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
