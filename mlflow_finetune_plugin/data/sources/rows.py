"""Read rows from files and data sets one at a time, each with the line that it starts on.

The reader repairs nothing. A file that is cut off, malformed or in an unknown encoding raises a ``DataError`` with the line and
the fix, because a row that is lost here appears in no report. Standard library only; pyarrow is imported for Parquet,
Arrow and zstd files, openpyxl for Excel files, ``datasets`` for data sets of the hub.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.data.sources import arrow_files
from mlflow_finetune_plugin.data.sources.compression import COMPRESSIONS, opened, without_compression
from mlflow_finetune_plugin.data.sources.delimited import csv_rows
from mlflow_finetune_plugin.data.sources.json_document import JsonDocument, excerpt
from mlflow_finetune_plugin.data.sources.locations import HUB, hub_dataset
from mlflow_finetune_plugin.data.sources.spreadsheet import xlsx_rows
from mlflow_finetune_plugin.data.sources.text_documents import text_rows
from mlflow_finetune_plugin.data.sources.text_lines import (
    LONGEST_DOCUMENT_BYTES,
    LONGEST_ROW_BYTES,
    Note,
    text_lines,
)
from mlflow_finetune_plugin.errors import DataError

Row = dict[str, Any]
_Reader = Callable[[Path, Iterator[tuple[int, str]], Note], Iterator[tuple[int, Row]]]

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".xlsx")
"""The file formats that ``read_rows`` accepts. The text formats may also end with ``.gz`` or ``.zst``."""

_JSON = (".jsonl", ".ndjson", ".json")
_BINARY = (".parquet", ".arrow", ".xlsx")


def read_rows(path: Path, note: Note | None = None) -> Iterator[tuple[int, Row]]:
    """Yield (line that the row starts on, row). For Parquet and Arrow, which have no lines, it is the row's number from 1.

    The numbers of a file are all different and increase, also where several rows of a JSON document share a line.

    The call checks the name and the existence of the file; everything else is checked while the rows are read.

    Args:
        path: A file, a folder that ``datasets.save_to_disk`` wrote, or an ``hf:`` name.
        note: Called with what is unusual about the file: its encoding or its separator.

    Raises:
        DataError: the file does not exist, has an unknown format or is malformed.
    """
    if str(path).startswith(HUB):
        return _rows_or_empty(path, arrow_files.hub_rows(hub_dataset(str(path))))
    path = Path(path)
    if arrow_files.is_saved_dataset(path):
        return _rows_or_empty(path, arrow_files.saved_rows(path))
    kind = _kind(path)
    _check_is_file(path)
    if kind == ".xlsx":
        return _rows_or_empty(path, xlsx_rows(path, note or _ignore))
    if kind in (".parquet", ".arrow"):
        read = arrow_files.parquet_rows if kind == ".parquet" else arrow_files.arrow_rows
        return _rows_or_empty(path, read(path))
    readers: dict[str, _Reader] = {".json": _json_rows, ".csv": csv_rows, ".tsv": csv_rows, ".txt": _documents}
    read_text = readers.get(kind, _jsonl_rows)
    return _rows_or_empty(path, _text_rows(path, read_text, is_json=kind in _JSON, note=note or _ignore))


def peek(path: Path, n: int = 50) -> list[tuple[int, Row]]:
    """Return the first ``n`` rows, from which the layout is detected."""
    return list(islice(read_rows(path), n))


def _ignore(_: str) -> None:
    """Take a note of a reader whose caller does not report."""


def _kind(path: Path) -> str:
    if path.is_dir():
        _check_is_file(path)
    plain = without_compression(path.name)
    suffix = Path(plain).suffix
    if suffix not in SUFFIXES or (suffix in _BINARY and plain != path.name.lower()):
        suffixes = ", ".join(SUFFIXES)
        endings = " or ".join(COMPRESSIONS)
        raise DataError(
            f"{path}: unknown file format; fix: end the name with one of {suffixes} (text formats also with {endings})"
        )
    return suffix


def _check_is_file(path: Path) -> None:
    if path.is_dir():
        arrow_files.check_is_no_dataset_dict(path)
        inside = sorted(p.name for p in path.iterdir() if p.is_file())
        hint = f"one of: {', '.join(inside[:5])}" if inside else "it has none"
        raise DataError(f"{path}: this is a directory, not a data file; fix: name a file in it ({hint})")
    if not path.exists():
        raise DataError(f"{path}: no such file; {_nearest_file(path)}")
    if not path.is_file():
        raise DataError(f"{path}: not a regular file, and the data is read twice; fix: write its content to a file")


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"fix: check the path; the folder {path.parent} does not exist"
    inside = sorted(p.name for p in path.parent.iterdir() if p.is_file())
    near = difflib.get_close_matches(path.name, inside, n=1, cutoff=0.5)
    if near:
        return f"did you mean {path.parent / near[0]}? fix: correct the path"
    readable = [name for name in inside if Path(without_compression(name)).suffix in SUFFIXES]
    return f"fix: check the path; data files in {path.parent}: {', '.join(readable[:5]) or 'none'}"


def _rows_or_empty(path: Path, rows: Iterator[tuple[int, Row]]) -> Iterator[tuple[int, Row]]:
    has_rows = False
    for numbered_row in rows:
        has_rows = True
        yield numbered_row
    if not has_rows:
        raise DataError(f"{path}: the file has no rows; fix: check the program that wrote it")


# text ----------------------------------------------------------------------------------------------------------------


def _text_rows(path: Path, reader: _Reader, *, is_json: bool, note: Note) -> Iterator[tuple[int, Row]]:
    longest = LONGEST_DOCUMENT_BYTES if reader in (_json_rows, _documents) else LONGEST_ROW_BYTES
    with opened(path) as stream:
        lines = text_lines(path, stream, is_json=is_json, note=note, longest=longest)
        yield from reader(path, lines, note)


def _documents(path: Path, lines: Iterator[tuple[int, str]], _: Note) -> Iterator[tuple[int, Row]]:
    return text_rows(path, lines)


# JSON lines ----------------------------------------------------------------------------------------------------------


def _jsonl_rows(path: Path, lines: Iterator[tuple[int, str]], _: Note) -> Iterator[tuple[int, Row]]:
    for number, text in lines:
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            # A broken last line is a file that is cut off, which needs another fix than a broken line.
            is_last = all(not rest.strip() for _, rest in lines)
            raise DataError(_jsonl_fault(path, number, text, error, is_last)) from error
        if not isinstance(row, dict):
            fix = "write one JSON object per line"
            if isinstance(row, list):
                fix += "; a list of objects belongs in a .json file"
            raise DataError(
                f"{path}, line {number}: the row is {_type(row)}, not an object: {excerpt(text)}; fix: {fix}"
            )
        yield number, row


def _jsonl_fault(path: Path, number: int, text: str, error: Exception, is_last: bool) -> str:
    where = f"{path}, line {number}"
    if text.strip() in ("[", "{"):
        kind = "a JSON list" if text.strip() == "[" else "a JSON object over several lines"
        return (
            f"{where}: the file is {kind}, not JSON lines; fix: end its name with .json, or write one object per line"
        )
    if is_last and isinstance(error, json.JSONDecodeError):
        return (
            f"{where}: the last line is incomplete: {excerpt(text, len(text))} ({error.msg}); fix: write the file again"
        )
    return _json_fault(where, text, error)


def _json_fault(where: str, text: str, error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        at = f"{error.msg} at column {error.colno}: {excerpt(text, error.pos)}"
    elif isinstance(error, RecursionError):
        at = f"nested too deeply: {excerpt(text)}"
    else:
        at = f"{error}: {excerpt(text)}"
    return f"{where}: invalid JSON: {at}; fix: correct that line"


def _type(value: object) -> str:
    names = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "an object")


# one JSON document ---------------------------------------------------------------------------------------------------


def _json_rows(path: Path, lines: Iterator[tuple[int, str]], _: Note) -> Iterator[tuple[int, Row]]:
    """Yield the rows of ``[{...}, ...]`` or ``{"data": [{...}, ...]}``. The whole text is in memory, the rows are not.

    No two rows have the same number, because a row's number is its identity: the split, the weights and the gate depend on it.
    So a row that starts on the line of an earlier row is counted on from there; in a document on one line, as ``json.dump``
    writes it, the numbers are those of the rows.
    """
    text = "".join(line for _, line in lines)
    if not text.strip():
        raise DataError(f"{path}: the file is empty; fix: check the program that wrote it")
    document = JsonDocument(path, text)
    document.enter_row_list()
    line, lines_counted_to, number = 1, 0, 0
    while (start := document.next_item()) is not None:
        line, lines_counted_to = line + text.count("\n", lines_counted_to, start), start
        row = document.value()
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {line}: the row is {_type(row)}, not an object: {excerpt(text[start : start + 200])}; "
                "fix: write a list of objects"
            )
        number = max(line, number + 1)
        yield number, row
    document.finish()
