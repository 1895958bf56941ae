"""Write Markdown: tables, and docstrings in Google's form."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

NOTICE = "*`make docs` generates this page from the code.*"
_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises):$")
_ITEM = re.compile(r"^(\*{0,2}[\w., ]+): (.*)$")
_CODE = re.compile(r"``(.+?)``")


def page(title: str, *parts: str) -> str:
    """Return a page: its title, the notice that it is generated, and its parts."""
    return "\n\n".join([f"# {title}", NOTICE, *(part.strip() for part in parts if part.strip())]) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table. Texts are escaped where Markdown would read them as the end of a cell."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(_cell(text) for text in row)} |" for row in rows]
    return "\n".join(lines)


def code(text: str) -> str:
    return f"`{text}`"


def sentence(text: str, *, is_name_first: bool = False) -> str:
    """Return a description with a capital letter and a full stop.

    Args:
        text: The description.
        is_name_first: Whether it may start with a name or a value, which is left as it is.
    """
    text = " ".join(text.split())
    first = text.split(" ", 1)[0].strip(",.")
    if first.isalpha() and not is_name_first:
        text = text[0].upper() + text[1:]
    return text if not text or text[-1] in ".!?:" else f"{text}."


def prose(documented: Any) -> str:
    """Return a docstring's text before its first section."""
    return next((text for name, text in docstring(documented) if name == ""), "")


def docstring(documented: Any) -> Iterator[tuple[str, str]]:
    """Yield the sections of a docstring as Markdown: ``""`` for the text, then ``Args``, ``Returns``, ``Raises``."""
    name, lines = "", list[str]()
    for line in (inspect.getdoc(documented) or "").splitlines():
        if match := _SECTION.match(line):
            yield name, _body(name, lines)
            name, lines = match[1], []
        else:
            lines.append(line)
    yield name, _body(name, lines)


def _body(name: str, lines: list[str]) -> str:
    text = inspect.cleandoc("\n".join(["", *lines]))
    if name == "":
        return _CODE.sub(r"`\1`", text)
    items: list[str] = []
    for line in text.splitlines():
        if match := _ITEM.match(line):
            names = [part.strip() for part in match[1].split(",")]
            is_prose = any(" " in name for name in names)
            items.append(f"- {match[1] if is_prose else ', '.join(map(code, names))}: {match[2]}")
        elif items:
            items[-1] += f" {line.strip()}"
        else:
            items.append(line)
    return _CODE.sub(r"`\1`", "\n".join(items))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
