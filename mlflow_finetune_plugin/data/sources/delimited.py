"""Read rows from CSV and TSV files. The first line is the header, and every row has as many fields."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.data.sources.json_document import EXCERPT_CHARS, excerpt
from mlflow_finetune_plugin.errors import DataError

Row = dict[str, Any]

_LONGEST_CSV_FIELD = 2**31 - 1  # the csv module's default of 128 KiB is shorter than a long document
_LONGEST_HEADER_NAME = 64


def csv_rows(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CSV_FIELD))
    tabs = path.name.lower().removesuffix(".gz").endswith(".tsv")
    reader = csv.reader((text for _, text in lines), delimiter="\t" if tabs else ",", strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(_csv_fault(path, line, error)) from error
        if not cells:
            continue
        if header is None:
            header = _checked_header(path, line, cells, tabs)
        elif len(cells) != len(header):
            raise DataError(
                f"{path}, line {line}: the row has {len(cells)} field{'' if len(cells) == 1 else 's'} and the header {len(header)} "
                f"({', '.join(header)}): {excerpt(', '.join(cells))}; "
                "fix: quote fields that contain the separator, and leave no field out"
            )
        else:
            yield line, dict(zip(header, cells, strict=True))


def _csv_fault(path: Path, line: int, error: csv.Error) -> str:
    if "unexpected end of data" in str(error):
        return (
            f"{path}, line {line}: a quote that opens in this row is never closed; the file may be cut off; "
            'fix: close the quote, or double a quote that belongs to the text ("")'
        )
    return f'{path}, line {line}: {error}; fix: quote the field and double the quotes inside it ("")'


def _checked_header(path: Path, line: int, names: list[str], tabs: bool) -> list[str]:
    listed = ", ".join(repr(name[:EXCERPT_CHARS]) for name in names)
    if not tabs and len(names) == 1 and any(separator in names[0] for separator in ";\t|"):
        raise DataError(
            f"{path}, line {line}: the header is a single column {listed}; fix: separate columns with commas, or name the file .tsv for tabs"
        )
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
