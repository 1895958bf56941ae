"""Read the rows of the first sheet of an Excel file. Its first row that is not empty is the header."""

from __future__ import annotations

import datetime
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.data.sources.delimited import checked_header
from mlflow_finetune_plugin.data.sources.text_lines import Note
from mlflow_finetune_plugin.errors import DataError, MissingExtraError

_EXTRA = "reading .xlsx files needs openpyxl; fix: pip install 'mlflow-finetune[excel]', or export the sheet as CSV"


def xlsx_rows(path: Path, note: Note) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row of the sheet, row). Dates become ISO text, and formulas have the value that Excel last stored.

    Raises:
        DataError: the file is not an Excel file, or its header is not valid.
        MissingExtraError: openpyxl is not installed.
    """
    try:
        import openpyxl
        from openpyxl.utils.exceptions import InvalidFileException
    except ImportError as error:
        raise MissingExtraError(f"{path}: {_EXTRA}") from error
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (InvalidFileException, zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise DataError(
            f"{path}: not a valid .xlsx file ({type(error).__name__}: {error}); fix: save it again, without a password"
        ) from error
    try:
        sheet = book.worksheets[0]
        if len(book.worksheets) > 1:
            others = ", ".join(other.title for other in book.worksheets[1:])
            note(f"the sheet {sheet.title!r} is read, and no other ({others})")
        yield from _rows(path, sheet)
    finally:
        book.close()


def _rows(path: Path, sheet: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    header: list[str] | None = None
    for number, values in enumerate(sheet.iter_rows(values_only=True), start=1):
        cells = [_cell(value) for value in values]
        while cells and cells[-1] is None:  # sheets are often wider than their content
            cells.pop()
        if not cells:
            continue
        if header is None:
            header = checked_header(path, number, ["" if cell is None else str(cell) for cell in cells])
        elif len(cells) > len(header):
            raise DataError(
                f"{path}, line {number}: the row has {len(cells)} cells and the header {len(header)} ({', '.join(header)}); "
                "fix: name every column in the header"
            )
        else:
            yield number, dict(zip(header, cells + [None] * (len(header) - len(cells)), strict=True))


def _cell(value: Any) -> Any:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return None if isinstance(value, str) and not value else value
