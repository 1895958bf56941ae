"""Detect what the columns of a file mean.

A ``Layout`` prints as ``label: text -> category``, so that a user can check the guess before a run uses it. Standard library
only.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mlflow_finetune_plugin.errors import DataError


@dataclass(frozen=True)
class Layout:
    """A layout and the column of each of its parts, e.g. ``label`` with ``{"text": "query", "label": "intent"}``."""

    name: str
    columns: Mapping[str, str]

    def __str__(self) -> str:
        answer = _SHAPES[self.name].answer
        inputs = [column for part, column in self.columns.items() if part != answer]
        listed = ", ".join(inputs)
        return f"{self.name}: {listed} -> {self.columns[answer]}" if answer else f"{self.name}: {listed}"


@dataclass(frozen=True)
class _Shape:
    """A layout's parts, the column names known for each part, and the part that the model learns to write."""

    parts: Mapping[str, tuple[str, ...]]
    optional: Mapping[str, tuple[str, ...]]
    answer: str | None
    pairs: tuple[tuple[str, ...], ...] = ()  # where set, only these combinations of column names are valid


TEXT = "text"
PREFERENCE = "preference"
_BESIDE_TEXT = frozenset(
    ("id", "url", "source", "timestamp", "date", "title", "author", "meta", "metadata", "lang", "language", "license")
)
"""Columns that describe the source of a text. A ``text`` column with no other columns than these holds documents."""

_SYSTEM = {"system": ("system", "system_prompt")}
_TEXT_COLUMNS = (
    *("text", "sentence", "query", "utterance", "message", "review", "comment", "tweet", "content", "document"),
    *("headline", "title", "description"),
)
_LABEL_COLUMNS = (
    *("label", "category", "intent", "class", "target", "sentiment", "topic", "label_text", "label_name", "emotion"),
    "tag",
)
_PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("input", "output"),
    ("question", "answer"),
    ("instruction", "response"),
)
_ASKING, _ANSWERING = (tuple(dict.fromkeys(names)) for names in zip(*_PAIRS, strict=True))
_PAIR_PARTS = {"prompt": _ASKING, "completion": _ANSWERING}

_SHAPES: dict[str, _Shape] = {
    "messages": _Shape({"messages": ("messages", "conversations", "conversation")}, _SYSTEM, None),
    "sharegpt": _Shape({"conversations": ("conversations", "conversation")}, _SYSTEM, None),
    "alpaca": _Shape(
        {"instruction": ("instruction",), "output": ("output",)},
        {"system": ("system",), "history": ("history",), "input": ("input",)},
        "output",
    ),
    "conversational": _Shape(_PAIR_PARTS, {}, "completion", _PAIRS),
    "prompt_completion": _Shape(_PAIR_PARTS, _SYSTEM, "completion", _PAIRS),
    "label": _Shape({"text": _TEXT_COLUMNS, "label": _LABEL_COLUMNS}, _SYSTEM, "label"),
    "instances": _Shape({"instruction": ("instruction",), "instances": ("instances",)}, _SYSTEM, "instances"),
    "preference": _Shape(
        {"chosen": ("chosen",), "rejected": ("rejected",)},
        {**_SYSTEM, "prompt": ("prompt", "question", "instruction", "input")},
        None,
    ),
    "text": _Shape({"text": ("text",)}, {}, None),
}

LAYOUTS = tuple(_SHAPES)
"""The names that ``data.layout`` accepts."""


def check_learnable(layout: Layout) -> None:
    """Raise DataError for a layout that supervised fine-tuning cannot learn from."""
    if layout.name == PREFERENCE:
        prompt = {part: layout.columns[part] for part in ("prompt",) if part in layout.columns}
        chosen = layout.columns["chosen"]
        imitated = {**prompt, "completion": chosen} if prompt else {"messages": chosen}
        columns = ", ".join(f"{part}: {column}" for part, column in imitated.items())
        raise DataError(
            f"{layout}: preference pairs cannot be used for training: the objective sft learns from single answers, and no "
            f"objective of this version learns from pairs; fix: data.columns: {{{columns}}} trains on the better answer alone"
        )


# detection -----------------------------------------------------------------------------------------------------------


def detect_layout(
    rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str] | None = None, layout: str = "auto"
) -> Layout:
    """Detect the layout of a file from its first rows.

    Args:
        rows: The first rows of the file.
        columns: The column of each part that the user named; the others are guessed.
        layout: ``auto``, or a layout's name; then only the columns are guessed.

    Raises:
        DataError: no layout fits, or several do.
    """
    rows, columns = list(rows), dict(columns or {})
    present = list(dict.fromkeys(str(key) for row in rows for key in row))
    if layout != "auto" and layout not in _SHAPES:
        raise DataError(f"{layout!r} is not a known layout; fix: pick one of: auto, {', '.join(LAYOUTS)}")
    _check_columns(columns, present, layout)
    candidates: list[Layout] = []
    for name in LAYOUTS if layout == "auto" else (layout,):
        candidates += _readings(name, rows, columns, present, has_to_fit=layout == "auto")
    candidates = _without_weaker(candidates)
    if len(candidates) == 1:
        return candidates[0]
    raise DataError(_no_single_layout(candidates, present, layout))


def _check_columns(columns: Mapping[str, str], present: list[str], layout: str) -> None:
    shapes = [_SHAPES[layout]] if layout != "auto" else list(_SHAPES.values())
    parts = sorted({part for shape in shapes for part in (*shape.parts, *shape.optional)})
    for part, column in columns.items():
        if part not in parts:
            near = difflib.get_close_matches(part, parts, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise DataError(
                f"data.columns: {part!r} is not a part of a layout; {hint}fix: pick from: {', '.join(parts)}"
            )
        if column not in present:
            near = difflib.get_close_matches(column, present, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise DataError(
                f"data.columns.{part}: the file has no column {column!r}; {hint}fix: pick one of its columns: {', '.join(present)}"
            )


def _readings(
    name: str, rows: list[Mapping[str, Any]], named: Mapping[str, str], present: list[str], *, has_to_fit: bool
) -> list[Layout]:
    """Return every assignment of the columns to the parts of this layout."""
    shape = _SHAPES[name]
    if not set(named) <= {*shape.parts, *shape.optional}:
        return []
    ways: list[dict[str, str]] = [{}]
    for part, names in shape.parts.items():
        choices = [named[part]] if part in named else [column for column in names if column in present]
        ways = [{**way, part: column} for way in ways for column in choices]
    if shape.pairs and not named:
        ways = [way for way in ways if tuple(way.values()) in shape.pairs]
    extra = {
        part: named.get(part) or next(column for column in names if column in present)
        for part, names in shape.optional.items()
        if part in named or any(column in present for column in names)
    }
    layouts = [Layout(name, _in_order(shape, {**extra, **way})) for way in ways]
    return [layout for layout in layouts if not has_to_fit or _fits(layout, rows)]


def _in_order(shape: _Shape, columns: dict[str, str]) -> dict[str, str]:
    """Order the parts as they occur in the prompt, so that a printed layout reads like it."""
    order = ["system", "history", "prompt", *(p for p in shape.parts if p != shape.answer), "input", *shape.parts]
    return {part: columns[part] for part in dict.fromkeys(order) if part in columns}


def _fits(layout: Layout, rows: list[Mapping[str, Any]]) -> bool:
    """Return whether the first value that is not null has the type that this layout needs in that column."""
    checks: dict[str, Callable[[Any], bool]] = {
        "messages": lambda value: _is_list_with(value, "role"),
        "sharegpt": lambda value: _is_list_with(value, "from"),
        "conversational": lambda value: _is_list_with(value, "role"),
        "preference": lambda value: isinstance(value, str | list),
        "text": lambda value: isinstance(value, str),
    }
    part = next(iter(_SHAPES[layout.name].parts))
    values = [row.get(layout.columns[part]) for row in rows]
    first = next((value for value in values if value is not None), None)
    if layout.name == TEXT and not {str(key) for row in rows for key in row} <= {layout.columns["text"], *_BESIDE_TEXT}:
        return False
    if layout.name in checks:
        return checks[layout.name](first)
    return not isinstance(first, list | dict)


def _is_list_with(value: Any, key: str) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and key in value[0]


def _without_weaker(candidates: list[Layout]) -> list[Layout]:
    """Remove the candidates that ignore a column which another candidate uses.

    Columns of chosen and rejected answers are a preference layout and nothing else. Nested instances are never also a prompt
    or an answer. Rows with a label are not documents. Where alpaca fits, its ``input`` column is not ignored.
    """
    for name in (PREFERENCE, "instances"):
        matching = [c for c in candidates if c.name == name]
        if matching:
            return matching
    if len(candidates) > 1:
        candidates = [c for c in candidates if c.name != TEXT]
    alpaca = next((c for c in candidates if c.name == "alpaca"), None)
    if alpaca is None:
        return candidates
    used = set(alpaca.columns.values())
    return [c for c in candidates if c is alpaca or not set(c.columns.values()) <= used]


def _no_single_layout(candidates: list[Layout], present: list[str], layout: str) -> str:
    listed = ", ".join(name if len(name) <= 40 else name[:37] + "..." for name in present) or "none"
    if candidates:
        either = "; or ".join(str(candidate) for candidate in candidates)
        return (
            f"the columns {listed} fit {len(candidates)} layouts: {either}; "
            f"fix: name the columns, {_columns_example(candidates[0])}, or set data.layout"
        )
    if present == ["text"] or set(present) <= {"text", *_BESIDE_TEXT}:
        return f"the column text is empty in the first rows (columns: {listed}); fix: name the column that holds the text, data.columns: {{text: ...}}"
    choices = [layout] if layout != "auto" else list(LAYOUTS)
    table = "".join(f"\n  {name}: {_known_columns(_SHAPES[name])}" for name in choices)
    hint = " (is the first line of the file a header?)" if any(" " in name.strip() for name in present) else ""
    return (
        f"the columns {listed} fit no known layout{hint}; fix: name them, for example "
        f"data.columns: {{prompt: ..., completion: ...}}, or set data.layout. Known layouts:{table}"
    )


def _columns_example(layout: Layout) -> str:
    return "data.columns: {" + ", ".join(f"{part}: {column}" for part, column in layout.columns.items()) + "}"


def _known_columns(shape: _Shape) -> str:
    if shape.pairs:
        return " or ".join("/".join(pair) for pair in shape.pairs)
    needed = " + ".join("|".join(names) for names in shape.parts.values())
    return needed + "".join(f" [{'|'.join(names)}]" for names in shape.optional.values())
