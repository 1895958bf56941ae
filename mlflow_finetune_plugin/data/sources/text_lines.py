"""Decode the lines of a text file: UTF-8, UTF-16, or Windows-1252 where only that can be meant.

A JSON file is UTF-8 or UTF-16. Other text files are also read as Windows-1252 if the first line that is not ASCII is not UTF-8
either, and if its characters are letters and punctuation of Western European languages. Everything else is refused: to read
a file in the wrong code page would train on wrong words.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import TypeVar

from mlflow_finetune_plugin.data.sources.compression import ByteStream
from mlflow_finetune_plugin.errors import DataError

Line = TypeVar("Line", str, bytes)

Note = Callable[[str], None]
"""Takes what the report should say about how a file was read."""

_HEAD_BYTES = 8192
_MOSTLY = 0.7
_SIGNATURES = {
    b"\x1f\x8b": "gzip data; fix: end its name with .gz",
    b"PK\x03\x04": "a zip archive; fix: unpack it, or end the name of an Excel file with .xlsx",
    b"PAR1": "a Parquet file; fix: end its name with .parquet",
    b"ARROW1": "an Arrow file; fix: end its name with .arrow",
    b"\x28\xb5\x2f\xfd": "zstd data; fix: end its name with .zst",
    b"BZh": "bzip2 data; fix: decompress it, or compress with gzip",
    b"\xfd7zXZ": "xz data; fix: decompress it, or compress with gzip",
}
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_UTF32_MARK = b"\xff\xfe\x00\x00"
_CONVERT = "fix: iconv -f {name} -t UTF-8 FILE > NEW"
_WINDOWS = "cp1252"
_WESTERN = re.compile(
    "[\x00-\x7f\xa0ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜßàáâãäåæçèéêëìíîïñòóôõöøùúûüÿŒœŸ€‘’‚“”„–—…•«»‹›¡¿°£§©®™·´]*"
)
_NOT_WESTERN = re.compile("[À-ÿ]{3}")
"""Three such letters in a row are Cyrillic, Greek or another alphabet in its own code page."""


LONGEST_ROW_BYTES = 2**26
"""64 MiB: more than the context of any model, and little enough to be read many times over."""
LONGEST_DOCUMENT_BYTES = 2**30


def text_lines(
    path: Path, stream: ByteStream, *, is_json: bool, note: Note, longest: int = LONGEST_ROW_BYTES
) -> Iterator[tuple[int, str]]:
    """Yield (number, text with its line end) of every physical line. Only ``\\n`` ends a line.

    Raises:
        DataError: a line has more than ``longest`` bytes (characters in UTF-16), or is not text.
    """
    head = stream.peek(_HEAD_BYTES)[:_HEAD_BYTES]
    if head.startswith(_UTF16_MARKS) and not head.startswith(_UTF32_MARK):
        note("the encoding is UTF-16")
        return _utf16_lines(path, stream, "utf-16", longest)
    if encoding := _unmarked_utf16(head):
        note(f"the encoding is {encoding.upper()} without a byte order mark")
        return _utf16_lines(path, stream, encoding, longest)
    return _byte_lines(path, _bounded(path, stream.readline, longest), is_json=is_json, note=note)


def _bounded(path: Path, readline: Callable[[int], Line], longest: int) -> Iterator[Line]:
    """Yield lines. A file without line ends, such as a compressed one that unpacks to gigabytes, is not read to its end."""
    for number in count(1):
        line = readline(longest + 1)
        if not line:
            return
        if len(line) > longest:
            raise DataError(f"{path}, line {number}: longer than {longest // 2**20:,} MiB; fix: write one row per line")
        yield line


def _utf16_lines(path: Path, stream: ByteStream, encoding: str, longest: int) -> Iterator[tuple[int, str]]:
    number = 0
    wrapper = io.TextIOWrapper(stream, encoding=encoding, newline="\n")
    try:
        for number, text in enumerate(_bounded(path, wrapper.readline, longest), start=1):
            if "\x00" in text:
                raise DataError(f"{path}, line {number}: a NUL character; fix: remove it, or write the file again")
            yield number, text
    except UnicodeError as error:
        raise DataError(
            f"{path}, line {number + 1}: not valid UTF-16 ({error}); the file may be cut off; fix: write the file again as UTF-8"
        ) from error


def _unmarked_utf16(head: bytes) -> str | None:
    """Return the encoding of UTF-16 text whose characters are mostly ASCII: every other byte of it is mostly zero."""
    low, high = head[0::2], head[1::2]
    for encoding, zeros, letters in (("utf-16-le", high, low), ("utf-16-be", low, high)):
        if zeros and zeros.count(0) > _MOSTLY * len(zeros) and not letters.count(0):
            return encoding
    return None


def _byte_lines(path: Path, lines: Iterator[bytes], *, is_json: bool, note: Note) -> Iterator[tuple[int, str]]:
    offset, is_ascii, is_windows = 0, True, False
    for number, raw in enumerate(lines, start=1):
        if number == 1:
            _check_is_text(path, raw[:_HEAD_BYTES])
        if b"\x00" in raw:
            at = offset + raw.index(b"\x00")
            raise DataError(f"{path}, line {number}: a NUL byte at byte {at}; fix: remove it, or write the file again")
        if not is_json and is_ascii and not raw.isascii() and _is_windows(raw):
            is_windows = True
            note(f"the encoding is Windows-1252, because line {number} is not UTF-8")
        is_ascii = is_ascii and raw.isascii()
        text = _windows_text(path, number, raw) if is_windows else _utf8_text(path, number, raw, offset)
        yield number, text.removeprefix("\ufeff" if number == 1 else "")
        offset += len(raw)
    if offset == 0:
        raise DataError(f"{path}: the file is empty; fix: check the program that wrote it")


def _is_windows(raw: bytes) -> bool:
    """Return whether a line is not UTF-8 and is text of a Western European language in Windows-1252."""
    return not _is_utf8(raw) and _is_western(raw)


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_western(raw: bytes) -> bool:
    try:
        text = raw.decode(_WINDOWS)
    except UnicodeDecodeError:
        return False
    return _WESTERN.fullmatch(text) is not None and not _NOT_WESTERN.search(text)


def _windows_text(path: Path, number: int, raw: bytes) -> str:
    if not raw.isascii() and (_is_utf8(raw) or not _is_western(raw)):
        raise DataError(
            f"{path}, line {number}: earlier lines are in Windows-1252, and this line is not: {raw[:60]!r}; "
            "fix: write the whole file as UTF-8"
        )
    return raw.decode(_WINDOWS)


def _utf8_text(path: Path, number: int, raw: bytes, offset: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        page = "WINDOWS-1252" if _is_western(raw) else "CODEPAGE"
        names = (
            ""
            if _is_western(raw)
            else ", with the name of the code page for CODEPAGE, such as WINDOWS-1251 or SHIFT_JIS"
        )
        around = raw[max(0, error.start - 10) : error.start + 10]
        raise DataError(
            f"{path}, line {number}: not UTF-8 at byte {offset + error.start} (0x{raw[error.start]:02x} in {around!r}); "
            f"fix: convert it from its code page, for example iconv -f {page} -t UTF-8 FILE > NEW{names}"
        ) from error


def _check_is_text(path: Path, head: bytes) -> None:
    if head.startswith(_UTF32_MARK):
        raise DataError(f"{path}: the encoding is UTF-32, not UTF-8; {_CONVERT.format(name='UTF-32')}")
    for signature, what in _SIGNATURES.items():
        if head.startswith(signature):
            raise DataError(f"{path}: not a text file: it is {what}")
    zeros = head.count(0)
    controls = sum(byte < 32 and byte not in b"\t\n\r\x0b\x0c\x1b" for byte in head)
    if zeros and controls * 10 > len(head):
        raise DataError(f"{path}: not a text file; fix: export it as JSON lines, CSV or Parquet")
