"""Detect what the columns of a file mean.

A ``Layout`` prints as ``label: text -> category``, so that a user can check the guess before a run uses it. Standard library
only.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow_finetune_plugin.data.columns.offers import (
    BESIDE_TEXT,
    columns_fix,
    columns_offer,
    has_no_header,
)
from mlflow_finetune_plugin.errors import DataError


@dataclass(frozen=True)
class Layout:
    """A layout and the column of each of its parts, e.g. ``label`` with ``{"text": "query", "label": "intent"}``."""

    name: str
    columns: Mapping[str, str]

    def __str__(self) -> str:
        answer = _SHAPES[self.name].answer
        answer = answer if answer in self.columns else None
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


_MOST_SAME = 0.5
"""Columns of classes have at most half as many values as rows."""

TEXT = "text"
SHAREGPT = "sharegpt"
LABEL = "label"
PREFERENCE = "preference"
RANKED = "ranked"
JUDGED = "judged"
RATED = "rated"
PROMPTS = "prompts"
SYSTEM_COLUMNS = ("system", "system_prompt")
_SYSTEM = {"system": SYSTEM_COLUMNS}
_BEFORE_ANSWER = {**_SYSTEM, "history": ("history",), "input": ("input", "context")}
CHAT_COLUMNS = ("messages", "conversations", "conversation")
PROMPT_COLUMNS = ("prompt", "question", "problem", "instruction", "query", "input", *CHAT_COLUMNS)
"""The columns that may hold the prompt of a pair, of a rated answer or of a rollout, the likeliest first."""
TEXT_COLUMNS = (
    *("text", "sentence", "query", "utterance", "message", "review", "comment", "tweet", "content", "document"),
    *("headline", "title", "description"),
)
LABEL_COLUMNS = (
    *("label", "category", "intent", "class", "target", "sentiment", "topic", "label_text", "label_name", "emotion"),
    "tag",
)
ANSWER_PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("input", "output"),
    ("question", "answer"),
    ("instruction", "response"),
)
FURTHER_ANSWER_PAIRS = (
    *(("query", "response"), ("problem", "solution"), ("message_1", "message_2"), ("question", "response")),
    *(("question", "answers"), ("prompt", "answer"), ("prompt", "output"), ("input", "response"), ("input", "answer")),
    *(("prompt", "generation"), ("article", "summary"), ("dialogue", "summary"), ("document", "summary")),
)
"""Pairs that are tried where no other layout fits: Axolotl's and ms-swift's prompt formats that differ by names alone."""
_FURTHER_CHATS = ("contents", "dialogue", "dialog", "chat", "turns")
WITH_INPUT = (
    *(("instruction", "input", "output"), ("instruction", "context", "output"), ("instruction", "input", "response")),
    *(("instruction", "context", "response"), ("question", "context", "answer"), ("question", "context", "answers")),
    ("question", "context", "response"),
)
"""Columns of an instruction, the text that it is about, and the answer: Alpaca, Dolly, SQuAD and others."""
_ASKING, _ANSWERING = (tuple(dict.fromkeys(names)) for names in zip(*ANSWER_PAIRS, strict=True))
_PAIR_PARTS = {"prompt": _ASKING, "completion": _ANSWERING}

_SHAPES: dict[str, _Shape] = {
    "messages": _Shape({"messages": ("messages", "conversations", "conversation")}, _SYSTEM, None),
    "sharegpt": _Shape({"conversations": ("conversations", "conversation")}, _SYSTEM, None),
    "alpaca": _Shape(
        {"instruction": ("instruction",), "output": ("output",)},
        {"system": ("system",), "history": ("history",), "input": ("input",)},
        "output",
    ),
    "conversational": _Shape(_PAIR_PARTS, {}, "completion", ANSWER_PAIRS),
    "prompt_completion": _Shape(_PAIR_PARTS, _SYSTEM, "completion", ANSWER_PAIRS),
    "label": _Shape({"text": TEXT_COLUMNS, "label": LABEL_COLUMNS}, _SYSTEM, "label"),
    "instances": _Shape({"instruction": ("instruction",), "instances": ("instances",)}, _SYSTEM, "instances"),
    PREFERENCE: _Shape(
        {"chosen": ("chosen",), "rejected": ("rejected",)},
        {**_BEFORE_ANSWER, "prompt": PROMPT_COLUMNS, "margin": ("margin",)},
        None,
    ),
    "text": _Shape({"text": ("text",)}, {}, None),
    RANKED: _Shape({"prompt": ("instruction",), "output": ("output",)}, _BEFORE_ANSWER, "output"),
    JUDGED: _Shape({"first": (), "second": (), "verdict": ()}, {**_BEFORE_ANSWER, "prompt": PROMPT_COLUMNS}, None),
    RATED: _Shape(
        {"label": ("label", "kto_tag")},
        {**_BEFORE_ANSWER, "prompt": PROMPT_COLUMNS, "completion": (), "messages": CHAT_COLUMNS},
        "completion",
    ),
    PROMPTS: _Shape({"prompt": PROMPT_COLUMNS}, {**_BEFORE_ANSWER, "completion": (), "label": ()}, None),
}

ROW_FORM_LAYOUTS = (PREFERENCE, RANKED, JUDGED, RATED, PROMPTS)
"""The layouts of pairs, ratings and prompts. ``row_forms.columns`` finds their columns."""

_ANSWER_LAYOUTS = tuple(name for name in _SHAPES if name not in (RANKED, JUDGED, RATED, PROMPTS))
LAYOUTS = tuple(_SHAPES)
"""The names that ``data.layout`` accepts."""


COMPOSED = "data.prompt_template"
"""The name under which a row holds its composed prompt (see ``prompt_template.py``). No column of a file is called so."""


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
    check_columns(columns, present, _ANSWER_LAYOUTS if layout == "auto" else (layout,))
    candidates: list[Layout] = []
    for name in _ANSWER_LAYOUTS if layout == "auto" else (layout,):
        candidates += _readings(name, rows, columns, present, has_to_fit=layout == "auto")
    candidates = _without_weaker(candidates) or ([] if columns else _further_readings(rows, present, layout))
    if len(candidates) == 1:
        return candidates[0] if columns or layout != "auto" else _with_texts_as_answers(candidates[0], rows)
    raise DataError(_no_single_layout(candidates, present, layout, rows))


def _with_texts_as_answers(layout: Layout, rows: Sequence[Mapping[str, Any]]) -> Layout:
    """Return the layout, with a ``target`` of different sentences as completion and not as label."""
    if layout.name != LABEL or layout.columns["label"] != "target":
        return layout
    values = [row["target"] for row in rows if row.get("target") is not None]
    if not values or not all(isinstance(value, str) and " " in value.strip() for value in values):
        return layout
    if len(set(values)) <= _MOST_SAME * len(values):
        return layout
    system = {"system": layout.columns["system"]} if "system" in layout.columns else {}
    return Layout("prompt_completion", {**system, "prompt": layout.columns["text"], "completion": "target"})


def check_columns(columns: Mapping[str, str], present: Sequence[str], layouts: Collection[str]) -> None:
    """Raise DataError for a named part that none of ``layouts`` has, or a named column that the file does not have."""
    shapes = [_SHAPES[name] for name in layouts]
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
    if name == "alpaca":
        ways = _with_input(ways, named, present)
    layouts = [Layout(name, _in_order(shape, {**extra, **way})) for way in ways]
    return [layout for layout in layouts if not has_to_fit or _fits(layout, rows)]


def _with_input(ways: list[dict[str, str]], named: Mapping[str, str], present: list[str]) -> list[dict[str, str]]:
    """Return the columns of the first known instruction with an input, or ``ways`` where the file has none."""
    for instruction, context, output in WITH_INPUT:
        way = {"instruction": instruction, "input": context, "output": output}
        if set(way.values()) <= set(present) and {**way, **named} == {**named, **way}:
            return [way]
    return ways


def _further_readings(rows: list[Mapping[str, Any]], present: list[str], layout: str) -> list[Layout]:
    """Return the readings by names that are less clear, for a file that fits no layout by the usual ones."""
    ways: list[tuple[str, dict[str, str]]] = []
    if {"query", "response", "history"} <= set(present):  # ms-swift
        ways.append(("alpaca", {"history": "history", "instruction": "query", "output": "response"}))
    for prompt, completion in () if ways else FURTHER_ANSWER_PAIRS:
        ways.append(("prompt_completion", {"prompt": prompt, "completion": completion}))
    for column in _FURTHER_CHATS:
        ways += [("messages", {"messages": column}), ("sharegpt", {"conversations": column})]
    system = _system_column((*SYSTEM_COLUMNS, "systemInstruction", "system_instruction"), present)
    readings = [
        Layout(name, {**system, **way})
        for name, way in ways
        if layout in ("auto", name) and set(way.values()) <= set(present)
    ]
    return [reading for reading in readings if _fits(reading, rows)]


def _system_column(names: tuple[str, ...], present: list[str]) -> dict[str, str]:
    name = next((name for name in names if name in present), None)
    return {"system": name} if name is not None else {}


def composed_layout(
    rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str], layout: str, used: Collection[str]
) -> Layout:
    """Return the layout of rows whose prompt ``data.prompt_template`` composes.

    Args:
        rows: The first rows of the file.
        columns: The columns that the user named: ``completion``, ``label`` or ``output``, and ``system``.
        layout: ``auto``, ``prompt_completion`` or ``label``.
        used: The columns that the template reads.

    Raises:
        DataError: a setting does not fit a template, or the column of the answer is not clear.
    """
    present = list(dict.fromkeys(str(key) for row in rows for key in row))
    if layout not in ("auto", "prompt_completion", "label"):
        raise DataError(f"{COMPOSED}: the layout {layout} has no prompt to compose; fix: remove data.layout")
    check_columns(columns, present, _ANSWER_LAYOUTS)
    if extra := sorted(set(columns) - {"completion", "label", "output", "system"}):
        raise DataError(f"data.columns.{extra[0]}: {COMPOSED} composes the prompt; fix: remove one of them")
    answers = {part: columns[part] for part in ("completion", "output", "label") if part in columns}
    if not answers:
        known = dict.fromkeys((*_ANSWERING, "output", "answers", "solution", "summary"), "completion")
        known.update(dict.fromkeys(LABEL_COLUMNS, "label"))
        answers = {name: part for name, part in known.items() if name in present and name not in used}
        answers = {part: name for name, part in answers.items()} if len(answers) == 1 else {}
    if len(answers) != 1:
        raise DataError(
            f"{COMPOSED}: which column holds the answer is not clear (columns: {', '.join(present)}); "
            "fix: name it, data.columns: {completion: ...}, or {label: ...} for a class"
        )
    ((part, answer),) = answers.items()
    unread = [name for name in present if name not in used]
    system = {"system": columns["system"]} if "system" in columns else _system_column(SYSTEM_COLUMNS, unread)
    if part == "label" or layout == "label":
        return Layout("label", {**system, "text": COMPOSED, "label": answer})
    return Layout("prompt_completion", {**system, "prompt": COMPOSED, "completion": answer})


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
    if layout.name == TEXT and not {str(key) for row in rows for key in row} <= {layout.columns["text"], *BESIDE_TEXT}:
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


def _no_single_layout(
    candidates: list[Layout], present: list[str], layout: str, rows: Sequence[Mapping[str, Any]]
) -> str:
    listed = ", ".join(name if len(name) <= 40 else name[:37] + "..." for name in present) or "none"
    if candidates:
        either = "; or ".join(str(candidate) for candidate in candidates)
        return (
            f"the columns {listed} fit {len(candidates)} layouts: {either}; "
            f"fix: name the columns, {columns_fix(candidates[0].columns)}, or set data.layout"
        )
    if present == ["text"] or set(present) <= {"text", *BESIDE_TEXT}:
        return f"the column text is empty in the first rows (columns: {listed}); fix: name the column that holds the text, data.columns: {{text: ...}}"
    choices = [layout] if layout != "auto" else list(_ANSWER_LAYOUTS)
    table = "".join(f"\n  {name}: {_known_columns(_SHAPES[name])}" for name in choices)
    if has_no_header(rows, present):
        return (
            f"the file has no header: its first line holds data ({listed}); fix: write the names of the columns into a line before "
            "it, for example prompt and completion, or text and label"
        )
    hint = " (is the first line of the file a header?)" if any(" " in name.strip() for name in present) else ""
    return (
        f"the columns {listed} fit no known layout{hint}; fix: name them, for example "
        "data.columns: {prompt: ..., completion: ...}, compose a prompt of several columns with data.prompt_template, or set "
        f"data.layout{columns_offer(rows, present)}. Known layouts:{table}"
    )


def _known_columns(shape: _Shape) -> str:
    if shape.pairs:
        return " or ".join("/".join(pair) for pair in shape.pairs)
    needed = " + ".join("|".join(names) for names in shape.parts.values())
    return needed + "".join(f" [{'|'.join(names)}]" for names in shape.optional.values())
