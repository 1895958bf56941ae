"""List the data files of a folder or a pattern. A folder stands for all data files that are in it."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from mlflow_finetune_plugin.data.sources.arrow_files import is_saved_dataset
from mlflow_finetune_plugin.data.sources.compression import without_compression
from mlflow_finetune_plugin.data.sources.locations import is_remote
from mlflow_finetune_plugin.data.sources.rows import SUFFIXES
from mlflow_finetune_plugin.errors import DataError

_HELD_OUT = re.compile(r"(^|[^a-z])(test|valid|validation|val|dev|eval)([^a-z]|$)")
_LISTS = ("dataset_info.json",)
_SHOWN = 5


def data_files_of(path: str) -> list[str]:
    """Return the files that ``path`` stands for, sorted by name; the path itself where it is neither a folder nor a pattern.

    Of a folder these are the data files directly in it. A pattern has the wildcards ``*``, ``?``, ``[...]`` and ``**``.

    Raises:
        DataError: there is no file, or it is not clear which files of the folder are meant.
    """
    if is_remote(path) or "://" in path:
        return [path]
    folder = Path(path)
    if is_folder_of_files(folder):
        return _files_in(folder)
    if glob.has_magic(path) and not folder.exists():
        return _matches(path)
    return [path]


def is_folder_of_files(folder: Path) -> bool:
    """Return whether ``folder`` is a folder, and not a data set that ``save_to_disk`` wrote."""
    return folder.is_dir() and not is_saved_dataset(folder) and not (folder / "dataset_dict.json").is_file()


def has_data_files(folder: Path) -> bool:
    """Return whether a folder has data files directly in it."""
    return bool(_named_as_data(folder))


def set_name(path: str) -> str:
    """Return the name of a folder, or of the folder in which a pattern begins."""
    parts = [part for part in Path(path).parts if part not in ("/", ".", "..")]
    fixed = parts[: next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))]
    return fixed[-1] if fixed else "data"


def _named_as_data(folder: Path) -> list[Path]:
    files = [file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")]
    return sorted(file for file in files if _suffix(file) in SUFFIXES and file.name not in _LISTS)


def _suffix(file: Path) -> str:
    return Path(without_compression(file.name)).suffix


def _files_in(folder: Path) -> list[str]:
    files = _named_as_data(folder)
    if not files:
        raise DataError(
            f"{folder}: the folder has no data files; fix: name a folder with files that end with {', '.join(SUFFIXES)}"
        )
    kinds = sorted({_suffix(file) for file in files})
    if len(kinds) > 1:
        raise DataError(
            f"{folder}: the folder has files of several formats ({', '.join(kinds)}), and which of them are data is not clear; "
            f"fix: name them by a pattern, for example '{folder}/*{kinds[0]}'"
        )
    held_out = [file.name for file in files if _HELD_OUT.search(without_compression(file.name))]
    if held_out and len(held_out) < len(files):
        others = [file.name for file in files if file.name not in held_out]
        raise DataError(
            f"{folder}: the folder has {_listed(others)} and, to judge by the names, held-out rows in {_listed(held_out)}; "
            "fix: name the files in data.train and data.eval"
        )
    return [str(file) for file in files]


def _matches(pattern: str) -> list[str]:
    folder = next((parent for parent in Path(pattern).parents if parent.is_dir()), Path("."))
    rest = str(Path(pattern).relative_to(folder))
    matches = sorted(glob.glob(f"{glob.escape(str(folder))}/{rest}", recursive=True))
    files = [match for match in matches if not is_folder_of_files(Path(match))]
    if not files:
        raise DataError(f"{pattern}: no file matches this pattern; fix: correct it, or name a folder or a file")
    return files


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
