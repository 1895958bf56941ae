"""What a row's columns mean: the guess, shown before it is used, and the conversation a row stands for.

A ``Layout`` is a value that can be printed ("label: text -> category"). A row that does not fit it is a ``RowFault``
with a short fixed reason, so that the faults of a file can be counted. Texts are taken verbatim: what is in the file,
blanks included, is what is trained on. Standard library only.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.types import Message

EMPTY_PROMPT = "empty prompt"
EMPTY_COMPLETION = "empty completion"
NULL_FIELD = "null field"
MISSING_FIELD = "missing field"
WRONG_TYPE = "wrong type"
BROKEN_UNICODE = "broken unicode"
NO_ASSISTANT_TURN = "no assistant turn"
ROLES_OUT_OF_ORDER = "roles out of order"
ENDS_WITH_USER_TURN = "ends with a user turn"
UNSUPPORTED_ROLE = "unsupported role"
UNSUPPORTED_FIELD = "unsupported field"


class RowFault(Exception):
    """Why one row cannot be trained on: ``reason`` is counted, ``detail`` is for whoever looks at that row."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}" if detail else reason)


@dataclass(frozen=True)
class Layout:
    """A layout's name and which column plays which part, e.g. ``label`` with ``{"text": "query", "label": "intent"}``."""

    name: str
    columns: Mapping[str, str]

    def __str__(self) -> str:
        answer = _SHAPES[self.name].answer
        asked = [column for part, column in self.columns.items() if part != answer]
        shown = ", ".join(asked)
        return f"{self.name}: {shown} -> {self.columns[answer]}" if answer else f"{self.name}: {shown}"


@dataclass(frozen=True)
class Conversation:
    """[system] then user and assistant in turn, the assistant last; no text is empty."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class _Shape:
    """One layout: its parts, the column names known for each, and which part the model is to learn to write."""

    parts: Mapping[str, tuple[str, ...]]
    optional: Mapping[str, tuple[str, ...]]
    answer: str | None
    pairs: tuple[tuple[str, ...], ...] = ()  # where given, the parts' names go together only like this


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
    "messages": _Shape({"messages": ("messages", "conversations", "conversation")}, {}, None),
    "sharegpt": _Shape({"conversations": ("conversations", "conversation")}, _SYSTEM, None),
    "alpaca": _Shape(
        {"instruction": ("instruction",), "output": ("output",)},
        {"system": ("system",), "history": ("history",), "input": ("input",)},
        "output",
    ),
    "conversational": _Shape(_PAIR_PARTS, {}, "completion", _PAIRS),
    "prompt_completion": _Shape(_PAIR_PARTS, _SYSTEM, "completion", _PAIRS),
    "label": _Shape({"text": _TEXT_COLUMNS, "label": _LABEL_COLUMNS}, _SYSTEM, "label"),
}

LAYOUTS = tuple(_SHAPES)
"""The layouts known by name, for ``data.layout``."""

# the guess -----------------------------------------------------------------------------------------------------------


def detect_layout(
    rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str] | None = None, layout: str = "auto"
) -> Layout:
    """Which layout these first rows have; ``columns`` names parts by hand, ``layout`` leaves only the columns open."""
    rows, columns = list(rows), dict(columns or {})
    found = list(dict.fromkeys(str(key) for row in rows for key in row))
    if layout != "auto" and layout not in _SHAPES:
        raise DataError(f"no layout {layout!r}; fix: pick one of: auto, {', '.join(LAYOUTS)}")
    _check_columns(columns, found, layout)
    candidates: list[Layout] = []
    for name in LAYOUTS if layout == "auto" else (layout,):
        candidates += _readings(name, rows, columns, found, has_to_fit=layout == "auto")
    candidates = _without_weaker(candidates)
    if len(candidates) == 1:
        return candidates[0]
    raise DataError(_no_single_layout(candidates, found, layout))


def _check_columns(columns: Mapping[str, str], found: list[str], layout: str) -> None:
    shapes = [_SHAPES[layout]] if layout != "auto" else list(_SHAPES.values())
    parts = sorted({part for shape in shapes for part in (*shape.parts, *shape.optional)})
    for part, column in columns.items():
        if part not in parts:
            near = difflib.get_close_matches(part, parts, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise DataError(f"data.columns: no part {part!r}; {hint}fix: pick from: {', '.join(parts)}")
        if column not in found:
            near = difflib.get_close_matches(column, found, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise DataError(
                f"data.columns.{part}: no column {column!r}; {hint}fix: pick from the columns found: {', '.join(found)}"
            )


def _readings(
    name: str, rows: list[Mapping[str, Any]], given: Mapping[str, str], found: list[str], *, has_to_fit: bool
) -> list[Layout]:
    """Every way in which these columns could be this layout."""
    shape = _SHAPES[name]
    if not set(given) <= {*shape.parts, *shape.optional}:
        return []
    ways: list[dict[str, str]] = [{}]
    for part, names in shape.parts.items():
        choices = [given[part]] if part in given else [column for column in names if column in found]
        ways = [{**way, part: column} for way in ways for column in choices]
    if shape.pairs and not given:
        ways = [way for way in ways if tuple(way.values()) in shape.pairs]
    extra = {
        part: given.get(part) or next(column for column in names if column in found)
        for part, names in shape.optional.items()
        if part in given or any(column in found for column in names)
    }
    layouts = [Layout(name, _in_order(shape, {**extra, **way})) for way in ways]
    return [made for made in layouts if not has_to_fit or _fits(made, rows)]


def _in_order(shape: _Shape, columns: dict[str, str]) -> dict[str, str]:
    """Parts in the order in which they are read, so that a printed layout reads like the prompt."""
    order = ["system", "history", *(p for p in shape.parts if p != shape.answer), "input", *shape.parts]
    return {part: columns[part] for part in dict.fromkeys(order) if part in columns}


def _fits(layout: Layout, rows: list[Mapping[str, Any]]) -> bool:
    """Whether the first value that is there has the type that this layout has in that column."""
    wanted: dict[str, Callable[[Any], bool]] = {
        "messages": lambda value: _is_list_with(value, "role"),
        "sharegpt": lambda value: _is_list_with(value, "from"),
        "conversational": lambda value: _is_list_with(value, "role"),
    }
    part = next(iter(_SHAPES[layout.name].parts))
    values = [row.get(layout.columns[part]) for row in rows]
    first = next((value for value in values if value is not None), None)
    if layout.name in wanted:
        return wanted[layout.name](first)
    return not isinstance(first, list | dict)


def _is_list_with(value: Any, key: str) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and key in value[0]


def _without_weaker(candidates: list[Layout]) -> list[Layout]:
    """Without readings that leave out a column which another reading of the same columns uses (input of alpaca)."""
    alpaca = next((c for c in candidates if c.name == "alpaca"), None)
    if alpaca is None:
        return candidates
    used = set(alpaca.columns.values())
    return [c for c in candidates if c is alpaca or not set(c.columns.values()) <= used]


def _no_single_layout(candidates: list[Layout], found: list[str], layout: str) -> str:
    shown = ", ".join(name if len(name) <= 40 else name[:37] + "..." for name in found) or "none"
    if candidates:
        either = "; or ".join(str(candidate) for candidate in candidates)
        return (
            f"the columns {shown} can be read in {len(candidates)} ways: {either}; "
            f"fix: name them, {_columns_example(candidates[0])}, or set data.layout"
        )
    if {"chosen", "rejected"} <= set(found):
        return f"the columns {shown} look like preference pairs; fix: give rows with one answer for supervised training"
    known = [layout] if layout != "auto" else list(LAYOUTS)
    table = "".join(f"\n  {name}: {_known_columns(_SHAPES[name])}" for name in known)
    hint = "; is the first line of the file its header?" if any(" " in name.strip() for name in found) else ""
    return (
        f"cannot tell the layout from the columns {shown}{hint}; fix: name them, for example "
        f"data.columns: {{prompt: ..., completion: ...}}, or set data.layout. Layouts known:{table}"
    )


def _columns_example(layout: Layout) -> str:
    return "data.columns: {" + ", ".join(f"{part}: {column}" for part, column in layout.columns.items()) + "}"


def _known_columns(shape: _Shape) -> str:
    if shape.pairs:
        return " or ".join("/".join(pair) for pair in shape.pairs)
    needed = " + ".join("|".join(names) for names in shape.parts.values())
    return needed + "".join(f" [{'|'.join(names)}]" for names in shape.optional.values())


# one row -------------------------------------------------------------------------------------------------------------


def conversation(layout: Layout, row: Mapping[str, Any]) -> Conversation:
    """The conversation that ``row`` stands for; ``RowFault`` when it is none that can be trained on."""
    return Conversation(_BUILDERS[layout.name](layout, row))


def _prompt_completion(layout: Layout, row: Mapping[str, Any]) -> tuple[Message, ...]:
    prompt, completion = _field(layout, row, "prompt"), _field(layout, row, "completion")
    return (
        *_system(layout, row),
        _message("user", _text(prompt, layout.columns["prompt"], EMPTY_PROMPT)),
        _message("assistant", _text(completion, layout.columns["completion"], EMPTY_COMPLETION)),
    )


def _label(layout: Layout, row: Mapping[str, Any]) -> tuple[Message, ...]:
    text = _text(_field(layout, row, "text"), layout.columns["text"], EMPTY_PROMPT)
    label = _label_text(_field(layout, row, "label"), layout.columns["label"])
    return (*_system(layout, row), _message("user", text), _message("assistant", label))


def _label_text(value: Any, column: str) -> str:
    """The label as text: digits for a whole number, true or false for a boolean."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and math.isnan(value):
        raise RowFault(NULL_FIELD, column)
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    return _text(value, column, EMPTY_COMPLETION)


def _alpaca(layout: Layout, row: Mapping[str, Any]) -> tuple[Message, ...]:
    """Instruction and input are one user turn with a blank line between; history is turns before it."""
    instruction = _text(_field(layout, row, "instruction"), layout.columns["instruction"], EMPTY_PROMPT)
    given = _optional(layout, row, "input")
    output = _text(_field(layout, row, "output"), layout.columns["output"], EMPTY_COMPLETION)
    asked = f"{instruction}\n\n{given}" if given else instruction
    return (
        *_system(layout, row),
        *_history(layout, row),
        _message("user", asked),
        _message("assistant", output),
    )


def _history(layout: Layout, row: Mapping[str, Any]) -> list[Message]:
    turns = row.get(layout.columns["history"]) if "history" in layout.columns else None
    if turns is None:
        return []
    if not isinstance(turns, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
        raise RowFault(WRONG_TYPE, "history is not a list of [user, assistant] pairs")
    said = []
    for user, assistant in turns:
        said.append(_message("user", _text(user, "history", EMPTY_PROMPT)))
        said.append(_message("assistant", _text(assistant, "history", EMPTY_COMPLETION)))
    return said


def _messages(layout: Layout, row: Mapping[str, Any]) -> tuple[Message, ...]:
    for key in ("tools", "functions"):
        if row.get(key):
            raise RowFault(UNSUPPORTED_FIELD, key)
    return _in_turn([_role_message(turn) for turn in _list(layout, row, "messages")])


def _conversational(layout: Layout, row: Mapping[str, Any]) -> tuple[Message, ...]:
    prompt, completion = _list(layout, row, "prompt"), _list(layout, row, "completion")
    if not prompt:
        raise RowFault(EMPTY_PROMPT, layout.columns["prompt"])
    if not completion:
        raise RowFault(EMPTY_COMPLETION, layout.columns["completion"])
    return _in_turn([_role_message(turn) for turn in (*prompt, *completion)])


_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_SHAREGPT_ROLES = {**_ROLES, "human": "user", "gpt": "assistant"}
_UNSUPPORTED_KEYS = ("reasoning_content", "reasoning", "thinking", "audio", "refusal")


def _role_message(turn: Any) -> Message:
    role = _role(turn, "role", _ROLES)
    for key in ("tool_calls", "function_call"):
        if turn.get(key):
            raise RowFault(UNSUPPORTED_ROLE, f"{role} with {key}")
    for key in _UNSUPPORTED_KEYS:
        if turn.get(key):
            raise RowFault(UNSUPPORTED_FIELD, key)
    if turn.get("weight") not in (None, 1):
        raise RowFault(UNSUPPORTED_FIELD, f"weight {turn['weight']!r}")
    return _message(role, _turn_text(turn, "content", role))


def _sharegpt(layout: Layout, row: Mapping[str, Any]) -> tuple[Message, ...]:
    turns = []
    for turn in _list(layout, row, "conversations"):
        role = _role(turn, "from", _SHAREGPT_ROLES)
        turns.append(_message(role, _turn_text(turn, "value", role)))
    return _in_turn([*_system(layout, row), *turns])


def _role(turn: Any, key: str, roles: Mapping[str, str]) -> str:
    if not isinstance(turn, dict):
        raise RowFault(WRONG_TYPE, f"a turn is {_shown(turn)}")
    if key not in turn:
        raise RowFault(MISSING_FIELD, key)
    role = turn[key]
    if role is None:
        raise RowFault(NULL_FIELD, key)
    if not isinstance(role, str) or role not in roles:
        raise RowFault(UNSUPPORTED_ROLE, _shown(role))
    return roles[role]


def _turn_text(turn: Mapping[str, Any], key: str, role: str) -> str:
    if key not in turn:
        raise RowFault(MISSING_FIELD, key)
    return _text(turn[key], key, EMPTY_COMPLETION if role == "assistant" else EMPTY_PROMPT)


def _in_turn(messages: list[Message]) -> tuple[Message, ...]:
    """Check [system] user assistant user assistant ... with the assistant last."""
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise RowFault(NO_ASSISTANT_TURN, " ".join(roles))
    turns = roles[1:] if roles[0] == "system" else roles
    for position, role in enumerate(turns):
        if role != ("user", "assistant")[position % 2]:
            raise RowFault(ROLES_OUT_OF_ORDER, " ".join(roles))
    if turns[-1] == "user":
        raise RowFault(ENDS_WITH_USER_TURN, " ".join(roles))
    return tuple(messages)


_BUILDERS: dict[str, Callable[[Layout, Mapping[str, Any]], tuple[Message, ...]]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "conversational": _conversational,
    "prompt_completion": _prompt_completion,
    "label": _label,
}


def _field(layout: Layout, row: Mapping[str, Any], part: str) -> Any:
    column = layout.columns[part]
    if column not in row:
        raise RowFault(MISSING_FIELD, column)
    if row[column] is None:
        raise RowFault(NULL_FIELD, column)
    return row[column]


def _list(layout: Layout, row: Mapping[str, Any], part: str) -> list[Any]:
    value = _field(layout, row, part)
    if not isinstance(value, list):
        raise RowFault(WRONG_TYPE, f"{layout.columns[part]} is {_shown(value)}, not a list")
    return value


def _optional(layout: Layout, row: Mapping[str, Any], part: str) -> str:
    """The text of a part that a row may leave out, be null in or leave blank; empty then."""
    column = layout.columns.get(part)
    value = row.get(column) if column else None
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    return _text(value, str(column), EMPTY_PROMPT)


def _system(layout: Layout, row: Mapping[str, Any]) -> list[Message]:
    text = _optional(layout, row, "system")
    return [_message("system", text)] if text else []


def _text(value: Any, name: str, if_empty: str) -> str:
    if value is None:
        raise RowFault(NULL_FIELD, name)
    if not isinstance(value, str):
        raise RowFault(WRONG_TYPE, f"{name} is {_shown(value)}, not text")
    if not value.strip():
        raise RowFault(if_empty, name)
    if not value.isascii():
        _check_unicode(value, name)
    return value


def _check_unicode(value: str, name: str) -> None:
    """JSON may hold half of a surrogate pair, which no tokenizer takes."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowFault(BROKEN_UNICODE, f"{name} holds {value[error.start]!r}") from error


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
