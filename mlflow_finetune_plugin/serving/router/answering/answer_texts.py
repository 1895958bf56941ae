"""Give the answers of chats by the rule of proof and pyfunc: without blanks at their ends and without the template's prefix.

Engines return what the model wrote. Where tokens begin with a blank (GPT-2), or where the chat template writes an empty think
block before each answer, that is not the text that was proven.
"""

from __future__ import annotations

import json
from typing import Any

from mlflow_finetune_plugin.evaluation.answer_text import answer_text, without_end

_EVENT = b"data: {"


class AnswerTexts:
    """The rule for the answers of one request.

    Args:
        prefix: What the chat template writes before each answer.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._streams: dict[int, AnswerStream] = {}

    def whole(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return an answer that is not streamed, with the texts by the rule. ``body`` is changed."""
        for choice in body.get("choices", ()):
            message = choice.get("message") or {}
            if isinstance(message.get("content"), str):
                message["content"] = answer_text(message["content"], self._prefix)
        return body

    def event(self, event: bytes) -> bytes | None:
        """Return one event of a stream with its text by the rule; None if nothing is left to send."""
        if not event.startswith(_EVENT):
            return event
        body = json.loads(event.removeprefix(b"data:"))
        choices = [choice for choice in body.get("choices") or () if isinstance(choice.get("delta"), dict)]
        kept = [self._apply(choice) for choice in choices]
        if kept and not any(kept) and not body.get("usage"):
            return None
        return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() if kept else event

    def _apply(self, choice: dict[str, Any]) -> bool:
        """Apply the rule to one choice of an event. Returns whether the event has to be sent because of it."""
        delta, stream = choice["delta"], self._streams.setdefault(choice.get("index", 0), AnswerStream(self._prefix))
        written = delta.get("content") or ""
        text = stream.feed(written) + (stream.finish() if choice.get("finish_reason") else "")
        if text or written:
            delta["content"] = text
        others = [value for key, value in delta.items() if key != "content"]
        others += [value for key, value in choice.items() if key not in ("index", "delta")]
        return bool(text) or not written or any(value is not None for value in others)


class AnswerStream:
    """Applies ``answer_text`` to text that comes in pieces: the returned pieces, joined, are the text by the rule."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix.strip()
        self._held = ""
        self._is_at_start = True

    def feed(self, written: str) -> str:
        """Return the text that can be sent. The possible beginning of the prefix, and blanks at the end, are held back."""
        self._held += written
        if self._is_at_start and not self._has_begun():
            return ""
        text = without_end(self._held)
        self._held = self._held[len(text) :]
        return text

    def finish(self) -> str:
        """Return what was held back and belongs to the answer."""
        text, self._held = without_end(self._held), ""
        return text if self._is_at_start else ""

    def _has_begun(self) -> bool:
        """Drop what comes before the answer. Returns whether its first character is there."""
        self._held = self._held.lstrip()
        if self._prefix and self._held.startswith(self._prefix):
            self._held, self._prefix = self._held[len(self._prefix) :].lstrip(), ""
        self._is_at_start = not self._held or self._prefix.startswith(self._held)
        return not self._is_at_start
