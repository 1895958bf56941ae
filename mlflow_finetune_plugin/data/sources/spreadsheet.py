"""Read the rows of the first sheet of an Excel file. Its first row that is not empty is the header."""

from __future__ import annotations

import datetime
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from mlflow_finetune_plugin.data.sources.delimited import checked_header
from mlflow_finetune_plugin.data.sources.text_lines import LONGEST_DOCUMENT_BYTES, Note
from mlflow_finetune_plugin.errors import DataError, MissingExtraError

_INVALID = "{}: not a valid .xlsx file ({}: {}); fix: save it again, without a password"
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
    faults = (
        InvalidFileException,
        zipfile.BadZipFile,
        zlib.error,
        ElementTree.ParseError,
        KeyError,
        ValueError,
        OSError,
    )
    try:
        _check_size(path)
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except DataError:
        raise
    except faults as error:
        raise DataError(_INVALID.format(path, type(error).__name__, error)) from error
    try:
        sheet = book.worksheets[0]
        if len(book.worksheets) > 1:
            others = ", ".join(other.title for other in book.worksheets[1:])
            note(f"the sheet {sheet.title!r} is read, and no other ({others})")
        sheet.reset_dimensions()  # one far cell would make every row 16,384 cells wide
        yield from _rows(path, sheet)
    except DataError:
        raise
    except faults as error:  # the sheet is parsed while its rows are read
        raise DataError(_INVALID.format(path, type(error).__name__, error)) from error
    finally:
        book.close()


def _check_size(path: Path) -> None:
    """Refuse a file that unpacks to more than Excel's largest sheets. ``zipfile`` never unpacks more than the sizes here."""
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > LONGEST_DOCUMENT_BYTES:
        raise DataError(f"{path}: unpacks to {unpacked / 2**30:.1f} GiB; fix: export the sheet as CSV")


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
