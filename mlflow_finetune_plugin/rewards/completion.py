"""What is scored, and what a score is. Standard library only, because the processes that score import it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

_EXCERPT = 80


@dataclass(frozen=True)
class Completion:
    """One answer of a model to one row.

    Attributes:
        prompt: The messages that the model answered.
        text: The answer.
        fields: The row's further columns, with ``reference`` where the row has a reference answer.
        row: The row's index, for messages about it.
    """

    prompt: list[dict[str, Any]]
    text: str
    fields: dict[str, Any]
    row: int

    @property
    def question(self) -> str:
        """The text of the last user message, or of the last message if no user wrote one."""
        by_users = [message for message in self.prompt if message.get("role") == "user"] or self.prompt
        content = by_users[-1].get("content") if by_users else ""
        return content if isinstance(content, str) else json.dumps(content, default=str)

    @property
    def excerpt(self) -> str:
        """The beginning of the question, in one line."""
        line = " ".join(self.question.split())
        return line if len(line) <= _EXCERPT else line[: _EXCERPT - 3] + "..."

    @property
    def item(self) -> dict[str, Any]:
        """The row in the form of OpenAI's graders: its columns and ``messages``."""
        return {"messages": self.prompt, **self.fields}

    @property
    def sample(self) -> dict[str, Any]:
        """The answer in the form of OpenAI's graders. ``output_json`` is None if the answer is not JSON."""
        message = {"role": "assistant", "content": self.text}
        return {"output_text": self.text, "output_json": _json(self.text), "choices": [{"message": message}]}


@dataclass(frozen=True)
class PartScore:
    """What one part says of one completion: a value, None if the part does not apply, or a fault."""

    value: float | None = None
    reason: str | None = None
    fault: str | None = None


@dataclass(frozen=True)
class RewardScores:
    """The scores of some completions, in their order.

    Attributes:
        parts: For each part its values; None where the part does not apply or was skipped.
        total: The weighted sum of the parts; None where no part has a value.
        reasons: For each part the reasons that it gave; ``skipped: ...`` where a failure was skipped.
        skipped: How many values are missing because a part failed (``on_error: skip``).
    """

    parts: dict[str, list[float | None]]
    total: list[float | None]
    reasons: dict[str, list[str | None]]
    skipped: int


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
