"""Files of prompts, to walk through or to be judged.

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
from typing import Any

from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.evaluation.results import Message
from mlflow_finetune_plugin.votes.journal.vote import LONGEST_PROMPT_SET, prompt_digest

MOST_PROMPTS = 10_000
LARGEST_FILE_BYTES = 64 * 2**20
LONGEST_PROMPT_CHARS = 20_000
"""Of all messages of a prompt together, where nobody says otherwise."""

_FIELDS = ("prompt", "messages", "reference", "completion", "id")
_FAULTS_SHOWN = 20
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
    """The set in a file, named as the file without its ending. Raises DataError with the file, each faulty line and the fix."""
    prompts: list[Prompt] = []
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
        told = "".join(f"\n  - line {line}: {error}" for line, error in faults[:_FAULTS_SHOWN])
        raise DataError(f"{path}: {len(faults)} faulty lines:{told}")
    if not prompts:
        raise DataError(f"{path}: holds no prompt; fix: write one row a line: {_ROW}")
    return prompt_set(path.stem[:LONGEST_PROMPT_SET] or "prompts", prompts)


def prompt_set(name: str, prompts: Iterable[Prompt], notes: Sequence[str] = ()) -> PromptSet:
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
