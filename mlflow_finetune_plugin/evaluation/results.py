"""The records of an evaluation: held-out rows, intervals, metric results and the report. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
"""One chat turn: ``{"role": "system" | "user" | "assistant" | "tool", "content": text}``.

An assistant turn may have ``tool_calls`` (as in OpenAI's API, with the arguments as an object) and ``reasoning_content``. The
first turn of a conversation may have ``tools``, the tools that the whole conversation may call; ``chat_fields`` takes them
out, because requests and chat templates have them beside the turns.
"""


def chat_fields(messages: Sequence[Message]) -> dict[str, Any]:
    """Return ``messages`` as the fields of a chat request: ``messages``, and ``tools`` where the conversation has some."""
    if not messages or not (tools := messages[0].get("tools")):
        return {"messages": list(messages)}
    first = {key: value for key, value in messages[0].items() if key != "tools"}
    return {"messages": [first, *messages[1:]], "tools": tools}


@dataclass(frozen=True)
class EvalRow:
    """One held-out row, rendered exactly as training renders it.

    Attributes:
        messages: The turns before the reference answer.
        prompt_ids: The prompt's tokens, up to the start of the assistant's turn.
        completion_ids: The reference answer's tokens, including the end-of-turn token.
        reference: The text that metrics compare an answer with.
        task: The task of the row.
        source: The name of its data file.
        line: Its line in that file.
        group: The row's value in the column ``data.group``; rows of one group are not independent.
        answer: The last turn, where it is more than the text of ``reference``: it calls tools, or holds reasoning.
    """

    messages: tuple[Message, ...]
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    reference: str
    task: str
    source: str
    line: int
    answer: Message | None = None
    group: str | None = None

    @property
    def turns(self) -> tuple[Message, ...]:
        """The whole conversation: the turns before the answer, and the answer."""
        return (*self.messages, self.answer or {"role": "assistant", "content": self.reference})


def answer_room(rows: Sequence[EvalRow]) -> int:
    """Return how many tokens an answer may have: those of the longest reference, and a few more for a longer wrong answer."""
    return max(len(row.completion_ids) for row in rows) + 8


@dataclass(frozen=True)
class Interval:
    """A point estimate with its two-sided 95 % interval; ``method`` names the computation."""

    value: float
    low: float
    high: float
    method: str


@dataclass(frozen=True)
class MetricResult:
    """Base and adapter under one metric. A positive ``gain`` means that the adapter is better, for every metric."""

    name: str
    base: float
    adapter: float
    gain: Interval
    higher_is_better: bool
    rows: int

    @property
    def is_better(self) -> bool:
        """Whether the adapter did better on these rows. Its interval says whether that may be chance."""
        return self.gain.value > 0


@dataclass(frozen=True)
class TextNats:
    """The summed nats of one general text under base and adapter, and its number of tokens."""

    tokens: int
    base: float
    adapter: float


@dataclass(frozen=True)
class EvalReport:
    """The proof of an adapter.

    Attributes:
        metrics: Each metric with its paired interval.
        forgetting: Adapter minus base on general text, in nats per token; None if not measured.
        rows: One record per held-out row.
        tasks: The metrics on the rows of each task; empty with a single task.
        texts: The general texts that forgetting was measured on.
    """

    metrics: tuple[MetricResult, ...]
    forgetting: Interval | None
    rows: tuple[dict[str, Any], ...] = field(repr=False)
    tasks: dict[str, tuple[MetricResult, ...]] = field(default_factory=dict)
    texts: tuple[TextNats, ...] = field(default=(), repr=False)
