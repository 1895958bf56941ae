"""Prompt sets: JSONL files of prompts for people to vote on, or for a judge.

A row is ``{"prompt": "..."}`` or ``{"messages": [...]}`` in OpenAI's format. ``reference`` (or ``completion``), the expected
answer, and ``id`` are optional. Training data has this format too: a last message of the assistant is the reference.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.evaluation.results import Message
from mlflow_finetune_plugin.votes.journal.vote import LONGEST_PROMPT_SET, prompt_digest

MOST_PROMPTS = 10_000
LARGEST_FILE_BYTES = 64 * 2**20
LONGEST_PROMPT_CHARS = 20_000
"""The default limit, for all messages of a prompt together."""

_FIELDS = ("prompt", "messages", "reference", "completion", "id")
_FAULTS_SHOWN = 20
_ROLES = ("system", "user", "assistant")
_ROW = '{"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}'


@dataclass(frozen=True)
class PromptSetRow:
    """A prompt of a set. ``messages`` are the whole prompt and end with the user; ``reference`` is the expected answer."""

    id: str
    messages: tuple[Message, ...]
    reference: str | None = None

    @cached_property
    def digest(self) -> str:
        """The same digest as ``Turn.prompt_digest`` of a vote."""
        return prompt_digest(self.messages)


@dataclass(frozen=True)
class PromptSet:
    """A named list of prompts.

    Args:
        name: The name that votes carry as ``Turn.prompt_set``.
        prompts: Distinct prompts.
        repeated: The number of rows that were skipped because they repeat an earlier one.
        notes: Remarks for the user, one line each.
    """

    name: str
    prompts: tuple[PromptSetRow, ...]
    repeated: int = 0
    notes: tuple[str, ...] = ()


def read_prompt_set(path: Path, *, longest_prompt_chars: int = LONGEST_PROMPT_CHARS) -> PromptSet:
    """Read a prompt set; its name is the file name without the ending.

    Raises:
        DataError: The file cannot be read or has faults; all faulty lines are listed.
    """
    prompts: list[PromptSetRow] = []
    faults: list[tuple[int, ValueError]] = []
    for line, text in _lines(path):
        try:
            prompts.append(_prompt(text, line, longest_prompt_chars))
        except ValueError as error:
            faults.append((line, error))
        if len(prompts) > MOST_PROMPTS:
            raise DataError(f"{path}, line {line}: more than {MOST_PROMPTS:,} prompts; fix: split the file")
    if len(faults) == 1:
        raise DataError(f"{path}, line {faults[0][0]}: {faults[0][1]}") from faults[0][1]
    if faults:
        lines = "".join(f"\n  - line {line}: {error}" for line, error in faults[:_FAULTS_SHOWN])
        raise DataError(f"{path}: {len(faults)} faulty lines:{lines}")
    if not prompts:
        raise DataError(f"{path} has no prompts; fix: write one row per line: {_ROW}")
    return prompt_set(path.stem[:LONGEST_PROMPT_SET] or "prompts", prompts)


def prompt_set(name: str, prompts: Iterable[PromptSetRow], notes: Sequence[str] = ()) -> PromptSet:
    """Return a prompt set without repeated prompts."""
    distinct: dict[str, PromptSetRow] = {}
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
                f"{path} has {size_bytes / 2**20:.0f} MiB, the limit is {LARGEST_FILE_BYTES // 2**20} MiB; "
                "fix: split the file"
            )
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; fix: give a JSONL file") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: is not UTF-8; fix: save the file as UTF-8") from error
    return [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _prompt(text: str, line: int, longest_chars: int) -> PromptSetRow:
    """Read one row. Raises ValueError with the reason and the fix."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}; fix: write one row per line: {_ROW}") from error
    if not isinstance(row, dict):
        raise ValueError(f"is a {type(row).__name__}, not a JSON object; fix: write {_ROW}")
    unknown = [name for name in row if name not in _FIELDS]
    if unknown:
        raise ValueError(f"{unknown[0]!r:.60} is not a field; fix: use only {', '.join(_FIELDS)}")
    if ("prompt" in row) == ("messages" in row):
        raise ValueError(f"has {'both' if 'prompt' in row else 'neither'} prompt and messages; fix: write {_ROW}")
    messages, answer = _messages(row)
    chars = sum(len(message["content"]) for message in messages)
    if chars > longest_chars:
        raise ValueError(f"the prompt has {chars:,} characters, the limit is {longest_chars:,}; fix: shorten it")
    return PromptSetRow(_id(row, line), messages, _reference(row, answer))


def _messages(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], str | None]:
    """Return the prompt, and the assistant's answer after it if the row has one."""
    if "prompt" in row:
        if not isinstance(row["prompt"], str) or not row["prompt"].strip():
            raise ValueError("prompt is not a text; fix: write the question of the user, or use messages")
        return ({"role": "user", "content": row["prompt"]},), None
    content = row["messages"]
    if not isinstance(content, list) or not content or not all(_is_message(message) for message in content):
        raise ValueError(
            f"messages must be a list of messages, each with a role of {', '.join(_ROLES)} and a text; fix: write {_ROW}"
        )
    messages = [{"role": message["role"], "content": message["content"]} for message in content]
    answer = messages.pop()["content"] if messages[-1]["role"] == "assistant" else None
    if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise ValueError("messages have no question of the user at the end; fix: end them with a user message")
    return tuple(messages), answer


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and set(message) == {"role", "content"}
        and message["role"] in _ROLES
        and isinstance(message["content"], str)
    )


def _reference(row: Mapping[str, Any], answer: str | None) -> str | None:
    references = [(name, row[name]) for name in ("reference", "completion") if row.get(name) is not None]
    if answer is not None:
        references.append(("the assistant's last message", answer))
    if len(references) > 1:
        raise ValueError(f"has two references, {references[0][0]} and {references[1][0]}; fix: keep one")
    if not references:
        return None
    name, reference = references[0]
    if not isinstance(reference, str):
        raise ValueError(f"{name} is not a text; fix: write the expected answer as text, or leave it out")
    return reference


def _id(row: Mapping[str, Any], line: int) -> str:
    row_id = row.get("id", line)
    if isinstance(row_id, bool) or not isinstance(row_id, str | int) or not str(row_id) or len(str(row_id)) > 200:
        raise ValueError("id is not a short text or a number; fix: change it, or leave it out")
    return str(row_id)
