"""Read the rows of a JSON document one at a time, each with the line that it starts on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from mlflow_finetune_plugin.errors import DataError

EXCERPT_CHARS = 60
_ROW_KEYS = ("data", "examples")
"""Keys of a document under which its rows may be: as a list, or as an object (``{"1": row, "2": row}``)."""


def excerpt(text: str, at: int = 0) -> str:
    """Return the text around position ``at``, quoted and short enough for an error message."""
    start = max(0, at - EXCERPT_CHARS // 2)
    piece = text[start : start + EXCERPT_CHARS].strip()
    return repr(("..." if start else "") + piece + ("..." if start + EXCERPT_CHARS < len(text) else ""))


class JsonDocument:
    """A cursor over a JSON text that stops at the start of each row."""

    def __init__(self, path: Path, text: str) -> None:
        self._path, self._text, self._at = path, text, 0
        self._decoder = json.JSONDecoder()
        self._first = True
        self._in_object = False
        self._closing = "]"

    def enter_row_list(self) -> None:
        """Move the cursor into the list that holds the rows, or into the object whose values are the rows."""
        if self._peek() == "[":
            self._at += 1
            return
        if self._peek() != "{":
            self._refuse(f"the document is not a list of objects: {excerpt(self._text)}")
        self._at += 1
        keys: list[str] = []
        while self._peek() != "}":
            key = self.value()
            self._expect(":")
            if key in _ROW_KEYS and self._peek() in ("[", "{"):
                self._closing = "]" if self._peek() == "[" else "}"
                self._at += 1
                self._in_object = True
                return
            keys.append(str(key))
            self.value()
            if self._peek() != "}":
                self._expect(",")
        self._at += 1
        if self._peek() == "{":
            raise DataError(f"{self._path}: the file holds several JSON objects; fix: end its name with .jsonl")
        self._refuse(f"the document is a single object without rows (keys: {', '.join(keys[:10]) or 'none'})")

    def next_item(self) -> int | None:
        """Return the position where the next row starts, or None after the last one."""
        if self._peek() == self._closing:
            self._at += 1
            return None
        if not self._first:
            self._expect(",")
            self._peek()
        self._first = False
        if self._closing == "}":
            self.value()
            self._expect(":")
            self._peek()
        return self._at

    def value(self) -> Any:
        self._peek()
        try:
            item, self._at = self._decoder.raw_decode(self._text, self._at)
        except json.JSONDecodeError as error:
            self._fail(error.msg, error.pos)
        except (ValueError, RecursionError) as error:
            self._fail(str(error), self._at)
        return item

    def finish(self) -> None:
        """Read the rest of the document after the rows, to detect a file that is cut off or has extra data."""
        if self._in_object:
            while self._peek() != "}":
                self._expect(",")
                self.value()
                self._expect(":")
                self.value()
            self._at += 1
        if self._peek():
            self._fail("extra data after the end of the document", self._at)

    def _peek(self) -> str:
        while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
            self._at += 1
        return self._text[self._at : self._at + 1]

    def _expect(self, character: str) -> None:
        if self._peek() != character:
            self._fail(f"expected {character!r}", self._at)
        self._at += 1

    def _fail(self, message: str, at: int) -> NoReturn:
        line = self._text.count("\n", 0, at) + 1
        rest = self._text[at:].strip()
        cut_off = not rest or message.startswith("Unterminated string")
        what = "the file may be cut off" if cut_off else "invalid JSON"
        fix = "write the file again" if cut_off else "correct that line"
        raise DataError(f"{self._path}, line {line}: {what}: {message}: {excerpt(self._text, at)}; fix: {fix}")

    def _refuse(self, what: str) -> NoReturn:
        raise DataError(f'{self._path}: {what}; fix: write a list of objects, or {{"data": [objects]}}')
