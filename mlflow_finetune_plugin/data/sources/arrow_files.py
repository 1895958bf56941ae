"""Read rows from Parquet and Arrow files, from folders that ``datasets.save_to_disk`` wrote, and from Hugging Face data sets.

The numbers of a ``ClassLabel`` column become its names, because a model learns words and not positions in a list.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.data.sources.locations import HubDataset
from mlflow_finetune_plugin.errors import DataError, MissingExtraError

Row = dict[str, Any]

_BATCH_ROWS = 1000
_INSTALL = "fix: pip install 'mlflow-finetune[train]'"


def parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    _pyarrow(path)
    from pyarrow import parquet

    def batches() -> Iterator[Any]:
        with parquet.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=_BATCH_ROWS)

    return _numbered(path, batches(), "Parquet")


def arrow_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Read an Arrow stream (as ``datasets`` writes) or an Arrow file with a footer, through a memory map."""
    _pyarrow(path)
    return _numbered(path, _arrow_batches(path), "Arrow")


def is_saved_dataset(path: Path) -> bool:
    """Return whether ``Dataset.save_to_disk`` wrote this folder."""
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def saved_rows(path: Path) -> Iterator[tuple[int, Row]]:
    _pyarrow(path)
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        files = [path / str(entry["filename"]) for entry in state["_data_files"]]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(
            f"{path}: state.json is not valid ({error}); fix: save the data set again with save_to_disk"
        ) from error
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise DataError(f"{path}: files are missing: {', '.join(missing[:3])}; fix: copy the whole folder again")
    return _numbered(path, (batch for file in files for batch in _arrow_batches(file)), "Arrow")


def check_is_no_dataset_dict(path: Path) -> None:
    """Raise DataError for a folder with several saved splits; the message names them."""
    listing = path / "dataset_dict.json"
    if listing.is_file():
        splits = json.loads(listing.read_text(encoding="utf-8")).get("splits", [])
        names = ", ".join(str(path / split) for split in splits)
        raise DataError(f"{path}: the folder holds {len(splits)} saved splits; fix: name one of them: {names}")


def hub_rows(name: HubDataset) -> Iterator[tuple[int, Row]]:
    """Read one split from the Hugging Face Hub, or from the local cache in offline mode (HF_HUB_OFFLINE, HF_DATASETS_OFFLINE)."""
    name_text = f"hf:{name.name}"
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(f"{name_text}: reading it needs the package datasets; {_INSTALL}") from error
    had_bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        split = datasets.load_dataset(name.name, name.config, split=name.split, revision=name.revision)
    except Exception as error:  # the hub, the network and the builder raise many types; the message shows the cause
        reason = " ".join(str(error).split())[:300]
        offline = datasets.config.HF_HUB_OFFLINE
        raise DataError(
            f"{name_text}: cannot load split {name.split!r}{f' of config {name.config!r}' if name.config else ''}"
            f"{' (offline mode, HF_HUB_OFFLINE is set)' if offline else ''}: {type(error).__name__}: {reason}; "
            "fix: check name, config and split, or load it once on a machine with network access and keep its cache"
        ) from error
    finally:
        if had_bars:
            datasets.enable_progress_bars()
    tables = split.with_format("arrow").iter(batch_size=_BATCH_ROWS)
    return _numbered(
        Path(name_text), (batch for table in tables for batch in table.to_batches()), "Arrow", split.features
    )


def _arrow_batches(path: Path) -> Iterator[Any]:
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        try:
            reader = pyarrow.ipc.open_stream(source)
        except pyarrow.ArrowInvalid:
            reader = pyarrow.ipc.open_file(source)
            yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
            return
        yield from reader


def _numbered(
    path: Path, batches: Iterable[Any], kind: str, features: Mapping[str, Any] | None = None
) -> Iterator[tuple[int, Row]]:
    import pyarrow

    number = 0
    names: dict[str, list[str]] | None = None
    try:
        for batch in batches:
            if names is None:
                names = _class_names(batch.schema, features)
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                for row in batch.slice(start, _BATCH_ROWS).to_pylist():
                    number += 1
                    yield number, _with_names(row, names) if names else row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        where = f", row {number + 1}" if number else ""
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{path}{where}: not a valid {kind} file: {reason}; fix: write or copy the file again"
        ) from error


def _class_names(schema: Any, features: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """Return the names of each ClassLabel column, from the data set's features or from the file's metadata."""
    if features is not None:
        return {column: list(feature.names) for column, feature in features.items() if hasattr(feature, "int2str")}
    huggingface = (schema.metadata or {}).get(b"huggingface")
    if not huggingface:
        return {}
    described = json.loads(huggingface).get("info", {}).get("features", {})
    return {
        column: list(feature["names"])
        for column, feature in described.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
    }


def _with_names(row: Row, names: Mapping[str, list[str]]) -> Row:
    """Replace the numbers of ClassLabel columns by their names; -1 means no label and becomes None."""
    for column, words in names.items():
        value = row.get(column)
        if isinstance(value, int):
            row[column] = words[value] if 0 <= value < len(words) else None
    return row


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtraError(
            f"{path}: reading Parquet and Arrow files needs the package pyarrow; {_INSTALL}"
        ) from error
    return pyarrow
