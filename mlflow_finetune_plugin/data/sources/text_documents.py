"""Read the documents of a ``.txt`` file one at a time, each with the line that it starts on.

The first MiB of the file decides what separates documents: lines with only ``<|endoftext|>`` if there are any, else blank
lines, else every line is a document. Blank documents are ignored.
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
    """Yield (line, {"text": document}). A document keeps its inner line breaks and loses the whitespace around it."""
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
        raise DataError(f"{path}: the file is empty; fix: check the program that wrote it")


def _separator(lines: list[str]) -> Any:
    """Return a function that tests whether a line ends a document, or None where every line is a document."""
    if any(line.strip() == END_OF_TEXT for line in lines):
        return lambda line: line.strip() == END_OF_TEXT
    if any(not line.strip() for line in lines):
        return lambda line: not line.strip()
    return None
