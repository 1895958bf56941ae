"""The records of an evaluation: held-out rows, intervals, metric results and the report. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def chat_turns(fields: Mapping[str, Any]) -> tuple[Message, ...]:
    """Return the turns of a chat request, with its tools in the first one: what ``chat_fields`` was made from."""
    turns = [dict(turn) for turn in fields.get("messages", ())]
    if turns and fields.get("tools"):
        turns[0]["tools"] = fields["tools"]
    return tuple(turns)


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
        rejected: The worse answer of a pair, whose better one is the reference; None in rows without one.
        rejected_ids: The tokens of the worse answer, including the end-of-turn token.
        is_good: The rating of the reference; None where the row has none.
        fields: The further columns of a prompt, as a JSON object; "" in other rows.
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
    rejected: str | None = None
    rejected_ids: tuple[int, ...] = ()
    is_good: bool | None = None
    fields: str = ""

    @property
    def turns(self) -> tuple[Message, ...]:
        """The whole conversation: the turns before the answer, and the answer."""
        return (*self.messages, self.answer or {"role": "assistant", "content": self.reference})


def has_reference(row: EvalRow) -> bool:
    """Return whether metrics may compare an answer with the row's reference. A prompt may have none."""
    return bool(row.reference) or not row.fields


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
class AnswerLengths:
    """The mean length of the generated answers of base and adapter, in tokens without the one that ends an answer."""

    base: float
    adapter: float


@dataclass(frozen=True)
class CalibrationBucket:
    """The pairs of which a reward model is about equally sure: from ``low`` to ``high``, as a chance.

    Attributes:
        low: The lowest chance of the bucket.
        high: The highest one.
        pairs: The number of pairs.
        expected: The mean chance that the answer with the higher reward is the better one: the sigmoid of the margin.
        right: The share in which it is.
    """

    low: float
    high: float
    pairs: int
    expected: float
    right: float


@dataclass(frozen=True)
class RewardFigures:
    """What a reward model does on held-out pairs, beside its metrics.

    Attributes:
        accuracy: The share of pairs whose better answer has the higher reward.
        margin: The mean of the better answer's reward minus the worse one's.
        mean: The mean of all rewards; training keeps it near 0.
        deviation: Their standard deviation.
        calibration_error: The mean distance of the buckets' ``right`` from ``expected``, weighted by their pairs.
        length_correlation: Pearson's correlation of reward and tokens of the answer; None where one of them is constant.
        longer_wins: The share of pairs whose better answer is the longer one.
        calibration: The pairs by how sure the model is.
    """

    accuracy: Interval
    margin: float
    mean: float
    deviation: float
    calibration_error: float
    length_correlation: float | None
    longer_wins: float
    calibration: tuple[CalibrationBucket, ...] = ()


@dataclass(frozen=True)
class EvalReport:
    """The proof of an adapter.

    Attributes:
        metrics: Each metric with its paired interval.
        forgetting: Adapter minus base on general text, in nats per token; None if not measured.
        rows: One record per held-out row.
        tasks: The metrics on the rows of each task; empty with a single task.
        texts: The general texts that forgetting was measured on.
        over: What the adapter is compared with; for a reward model a rule of length, else the base.
        rewards: Further figures of a reward model; None for a model that writes answers.
        kl: How much likelier the adapter's answers are under the adapter than under the base, in nats per token; None if
            not measured.
        lengths: How long the generated answers are; None for a reward model, which writes none.
    """

    metrics: tuple[MetricResult, ...]
    forgetting: Interval | None
    rows: tuple[dict[str, Any], ...] = field(repr=False)
    tasks: dict[str, tuple[MetricResult, ...]] = field(default_factory=dict)
    texts: tuple[TextNats, ...] = field(default=(), repr=False)
    over: str = "the base"
    rewards: RewardFigures | None = None
    kl: float | None = None
    lengths: AnswerLengths | None = None

    @property
    def is_better(self) -> bool:
        """Whether the adapter did better by its first metric. For a reward model, chance is excluded, too."""
        first = self.metrics[0]
        return first.is_better if self.rewards is None else first.gain.low > 0 and self.rewards.accuracy.low > 0.5
