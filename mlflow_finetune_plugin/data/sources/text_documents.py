"""Documents of a ``.txt`` file, one at a time, with the line each starts on.

What ends a document is told by the file's first MiB: lines that hold only ``<|endoftext|>``, where there are any; else
blank lines; else, in a file without either, every line is a document. Blank documents are no documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.errors import DataError

END_OF_TEXT = "<|endoftext|>"
COLUMN = "text"
_HEAD_CHARS = 2**20


def text_rows(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, {"text": document}); a document keeps its inner line breaks and loses the blanks around it."""
    head, size = [], 0
    for number, line in lines:
        head.append((number, line))
        size += len(line)
        if size >= _HEAD_CHARS:
            break
    is_end = _separator([line for _, line in head])
    start, collected = 0, list[str]()
    for number, line in chain(head, lines):
        ends = is_end(line) if is_end else True
        if not is_end or not ends:
            if not collected:
                if not line.strip():
                    continue
                start = number
            collected.append(line)
        if ends and collected:
            if document := "".join(collected).strip():
                yield start, {COLUMN: document}
            collected = []
    if document := "".join(collected).strip():
        yield start, {COLUMN: document}
    elif size == 0:
        raise DataError(f"{path}: is empty; fix: check what wrote it")


def _separator(lines: list[str]) -> Any:
    """Whether a line ends a document, or None where every line is one."""
    if any(line.strip() == END_OF_TEXT for line in lines):
        return lambda line: line.strip() == END_OF_TEXT
    if any(not line.strip() for line in lines):
        return lambda line: not line.strip()
    return None
