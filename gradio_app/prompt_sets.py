"""Prompts to walk through: of a JSON lines file, or the held-out rows of a version's training run. No gradio.

Rows of a file are ``{"prompt": "..."}`` or ``{"messages": [...]}`` (OpenAI's), with ``reference`` or ``completion``, the
answer wanted, and ``id``, as one likes. The layouts of training data are such rows: where ``messages`` end with the
assistant, what it says there is the reference.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.promotion.sides import are_unseen
from mlflow_finetune_plugin.promotion.versions import read_version
from mlflow_finetune_plugin.types import Message
from mlflow_finetune_plugin.votes.vote import BASE, LONGEST_PROMPT_SET, prompt_digest

if TYPE_CHECKING:
    from mlflow import MlflowClient

MOST_PROMPTS = 10_000
LARGEST_FILE_BYTES = 64 * 2**20
LONGEST_PROMPT_CHARS = 20_000
"""Of all messages of a prompt together, where nobody says otherwise."""

_FIELDS = ("prompt", "messages", "reference", "completion", "id")
_ROLES = ("system", "user", "assistant")
_ROW = '{"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}'


@dataclass(frozen=True)
class Prompt:
    """``messages`` are all that is sent, and end with the user; ``reference`` is the answer wanted, where one is known."""

    id: str
    messages: tuple[Message, ...]
    reference: str | None = None

    @cached_property
    def digest(self) -> str:
        """As in the votes: ``Turn.prompt_digest``."""
        return prompt_digest(self.messages)


@dataclass(frozen=True)
class PromptSet:
    """``prompts`` are all different; ``repeated`` rows said what an earlier one says, and were passed by.

    ``name`` is what ``Turn.prompt_set`` of its votes says; ``notes``: what a person should know of it, a line each.
    """

    name: str
    prompts: tuple[Prompt, ...]
    repeated: int = 0
    notes: tuple[str, ...] = ()


def read_prompt_set(path: Path, *, longest_prompt_chars: int = LONGEST_PROMPT_CHARS) -> PromptSet:
    """The set in a file, named as the file without its ending. Raises DataError with the file, the line and the fix."""
    prompts = []
    for line, text in _lines(path):
        try:
            prompts.append(_prompt(text, line, longest_prompt_chars))
        except ValueError as error:
            raise DataError(f"{path}, line {line}: {error}") from error
        if len(prompts) > MOST_PROMPTS:
            raise DataError(f"{path}, line {line}: more than {MOST_PROMPTS:,} prompts; fix: split the file")
    if not prompts:
        raise DataError(f"{path}: holds no prompt; fix: write one row a line: {_ROW}")
    return _set(path.stem[:LONGEST_PROMPT_SET] or "prompts", prompts)


def held_out_set(client: MlflowClient, model: str, version: str, *, others: Sequence[str] = ()) -> PromptSet:
    """The rows that ``version`` was proven on, as its run kept them; rows that it, or ``others``, were trained on are left out.

    Raises DataError where the run kept none that can be asked, GateError where they are not what the run says,
    MoveError for a version that is none, TrackingError.
    """
    asked = read_version(client, model, version)
    if asked.held_out is None:
        raise DataError(
            f"{asked.uri}: its training run kept no held-out rows; fix: train with an eval file or a split, or give a "
            "file of prompts"
        )
    notes: list[str] = []
    sides = [asked, *(read_version(client, model, other) for other in others if other not in (version, BASE))]
    unseen = are_unseen(asked.held_out.rows, sides, notes)
    rows = [row for row, is_new in zip(asked.held_out.rows, unseen, strict=True) if is_new]
    questions = [row for row in rows if row.messages]
    if not questions:
        why = "they are texts without a question" if rows else "every one of them was trained on"
        raise DataError(f"{asked.uri}: no held-out row can be asked: {why}; fix: give a file of prompts")
    if len(questions) > MOST_PROMPTS:
        notes.append(f"{asked.uri}: the first {MOST_PROMPTS:,} of {len(questions):,} held-out rows are asked")
    prompts = [Prompt(f"{row.source}:{row.line}", row.messages, row.reference) for row in questions[:MOST_PROMPTS]]
    return _set(f"held-out rows of version {version}", prompts, notes)


def _set(name: str, prompts: Iterable[Prompt], notes: Sequence[str] = ()) -> PromptSet:
    distinct: dict[str, Prompt] = {}
    count = 0
    for prompt in prompts:
        distinct.setdefault(prompt.digest, prompt)
        count += 1
    return PromptSet(name, tuple(distinct.values()), count - len(distinct), tuple(notes))


# a file ----------------------------------------------------------------------------------------------------------------


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        size_bytes = path.stat().st_size
        if size_bytes > LARGEST_FILE_BYTES:
            raise DataError(
                f"{path}: has {size_bytes / 2**20:.0f} MiB, at most {LARGEST_FILE_BYTES // 2**20} are read; "
                "fix: split the file"
            )
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; fix: name a JSON lines file") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: is not UTF-8; fix: save the file as UTF-8") from error
    return [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _prompt(text: str, line: int, longest_chars: int) -> Prompt:
    """Raises ValueError with what is wrong and the fix."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON: {error}; fix: write one row a line: {_ROW}") from error
    if not isinstance(row, dict):
        raise ValueError(f"is a {type(row).__name__}, no row; fix: write {_ROW}")
    unknown = [name for name in row if name not in _FIELDS]
    if unknown:
        raise ValueError(f"no field {unknown[0]!r:.60}; fix: keep of {', '.join(_FIELDS)} what is needed")
    if ("prompt" in row) == ("messages" in row):
        raise ValueError(f"has {'both' if 'prompt' in row else 'neither'} prompt and messages; fix: write {_ROW}")
    messages, said = _messages(row)
    chars = sum(len(message["content"]) for message in messages)
    if chars > longest_chars:
        raise ValueError(f"the prompt has {chars:,} characters, at most {longest_chars:,} are sent; fix: shorten it")
    return Prompt(_id(row, line), messages, _reference(row, said))


def _messages(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], str | None]:
    """What is sent, and what the assistant says after it."""
    if "prompt" in row:
        if not isinstance(row["prompt"], str) or not row["prompt"].strip():
            raise ValueError("prompt is no text; fix: write what the user asks, or use messages")
        return ({"role": "user", "content": row["prompt"]},), None
    told = row["messages"]
    if not isinstance(told, list) or not told or not all(_is_message(message) for message in told):
        raise ValueError(
            f"messages is no list of messages with a role of {', '.join(_ROLES)} and a text as content; fix: write {_ROW}"
        )
    messages = [{"role": message["role"], "content": message["content"]} for message in told]
    said = messages.pop()["content"] if messages[-1]["role"] == "assistant" else None
    if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise ValueError("nobody asks at the end of messages; fix: end them with what the user says")
    return tuple(messages), said


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and set(message) == {"role", "content"}
        and message["role"] in _ROLES
        and isinstance(message["content"], str)
    )


def _reference(row: Mapping[str, Any], said: str | None) -> str | None:
    told = [(name, row[name]) for name in ("reference", "completion") if row.get(name) is not None]
    if said is not None:
        told.append(("the assistant's last message", said))
    if len(told) > 1:
        raise ValueError(f"has two references, {told[0][0]} and {told[1][0]}; fix: keep one")
    if not told:
        return None
    name, reference = told[0]
    if not isinstance(reference, str):
        raise ValueError(f"{name} is no text; fix: write the answer wanted as text, or leave it out")
    return reference


def _id(row: Mapping[str, Any], line: int) -> str:
    told = row.get("id", line)
    if isinstance(told, bool) or not isinstance(told, str | int) or not str(told) or len(str(told)) > 200:
        raise ValueError("id is no short text or number; fix: write one, or leave it out")
    return str(told)
