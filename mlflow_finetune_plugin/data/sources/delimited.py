"""Read rows from CSV and TSV files. The first line is the header, and every row has as many fields.

A ``.csv`` file whose header has no comma may separate its columns with semicolons, tabs or vertical bars, as Excel writes it in
many countries. A first line such as ``sep=;`` names the separator, and is not the header.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.data.sources.compression import without_compression
from mlflow_finetune_plugin.data.sources.json_document import EXCERPT_CHARS, excerpt
from mlflow_finetune_plugin.data.sources.text_lines import LONGEST_ROW_BYTES, Note
from mlflow_finetune_plugin.errors import DataError

Row = dict[str, Any]

_LONGEST_HEADER_NAME = 64


_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)


def csv_rows(path: Path, lines: Iterator[tuple[int, str]], note: Note) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(LONGEST_ROW_BYTES)  # the default of 128 KiB is shorter than a long document
    usual = "\t" if without_compression(path.name).endswith(".tsv") else ","
    first = list(_lines_to_header(lines))
    named = _SEPARATOR_LINE.fullmatch(first[-1]) if first else None
    separator = named[1] if named else _separator(first[-1] if first else "", usual)
    if separator != usual:
        note(f"the columns are separated by {_SEPARATORS.get(separator, repr(separator))}")
    before = len(first) if named else 0
    texts = chain([] if named else first, (text for _, text in lines))
    reader = csv.reader(texts, delimiter=separator, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1 + before
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(_csv_fault(path, line, error)) from error
        if not cells:
            continue
        if header is None:
            header = checked_header(path, line, cells)
        elif len(cells) != len(header):
            raise DataError(
                f"{path}, line {line}: the row has {len(cells)} field{'' if len(cells) == 1 else 's'} and the header {len(header)} "
                f"({', '.join(header)}): {excerpt(', '.join(cells))}; "
                "fix: quote fields that contain the separator, and leave no field out"
            )
        else:
            yield line, dict(zip(header, cells, strict=True))


def _lines_to_header(lines: Iterator[tuple[int, str]]) -> Iterator[str]:
    """Yield the blank lines at the start of a file and its first other line."""
    for _, text in lines:
        yield text
        if text.strip():
            return


def _separator(header: str, usual: str) -> str:
    """Return the separator of a header: the usual one, unless only another one divides it."""
    fields = {separator: len(next(csv.reader([header], delimiter=separator), [])) for separator in _SEPARATORS}
    if fields[usual] > 1 or usual == "\t":
        return usual
    most = max(fields, key=lambda separator: fields[separator])
    return most if fields[most] > 1 else usual


def _csv_fault(path: Path, line: int, error: csv.Error) -> str:
    if "unexpected end of data" in str(error):
        return (
            f"{path}, line {line}: a quote that opens in this row is never closed; the file may be cut off; "
            'fix: close the quote, or double a quote that belongs to the text ("")'
        )
    if "larger than field limit" in str(error):
        return (
            f"{path}, line {line}: a field is longer than {LONGEST_ROW_BYTES // 2**20} MiB; "
            'fix: divide it, or close its quote (")'
        )
    return f'{path}, line {line}: {error}; fix: quote the field and double the quotes inside it ("")'


def checked_header(path: Path, line: int, names: list[str]) -> list[str]:
    """Return the names of a header. Raises DataError for names that look like values, or that occur twice."""
    listed = ", ".join(repr(name[:EXCERPT_CHARS]) for name in names)
    looks_like_values = [n for n in names if len(n) > _LONGEST_HEADER_NAME or "\n" in n or _is_number(n)]
    if looks_like_values:
        raise DataError(
            f"{path}, line {line}: the header is missing: {listed} look like values; fix: write the column names in the first line"
        )
    doubles = sorted({name for name in names if names.count(name) > 1})
    if doubles:
        raise DataError(
            f"{path}, line {line}: the header has the column {doubles[0]!r} {names.count(doubles[0])} times; "
            "fix: give every column a different name"
        )
    return names


def _is_number(text: str) -> bool:
    return text.strip().removeprefix("-").replace(".", "", 1).isdigit()
