"""Turn tokens into text piece by piece, without half characters and without stop texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

_CONTEXT = 16  # prompt tokens before the answer, so that its first word keeps the space it begins with
_LONGEST_CONTEXT = 64
_LONGEST_WAIT = 16  # a character has at most four bytes, so 16 tokens without one will never complete one
_INCOMPLETE = "\ufffd"


class Detokenizer:
    """Decodes a growing answer. The returned pieces, joined, are the answer's text after its prompt."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int], *, skip_special_tokens: bool) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self._ids = list(prompt[-_CONTEXT:])  # the tokens of the last piece, then those of the next one
        self._emitted = len(self._ids)
        self._emitted_text = self._decode(self._ids)

    def feed(self, token: int) -> str:
        """Return the text that this token completes; empty while a character is incomplete."""
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith(_INCOMPLETE) and len(self._ids) - self._emitted < _LONGEST_WAIT:
            return ""
        return self._emit(text)

    def finish(self) -> str:
        """Return the rest of an answer that ends within a character."""
        return self._emit(self._decode(self._ids)) if len(self._ids) > self._emitted else ""

    def _emit(self, text: str) -> str:
        new = text[len(self._emitted_text) :]
        if new or len(self._ids) > _LONGEST_CONTEXT:  # tokens without text are no context: a word would lose its space
            self._ids = self._ids[self._emitted :]
        self._emitted, self._emitted_text = len(self._ids), self._decode(self._ids)
        return new

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=self._skip, clean_up_tokenization_spaces=False)
        return str(text)  # blanks before punctuation stay, as in ``decoded_answer``


class StopTexts:
    """Passes text on up to the first stop text. It holds back text that may be the beginning of one."""

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.match: str | None = None

    def feed(self, text: str) -> str:
        """Return the text that can be sent, and set ``match`` if it ends at a stop text."""
        text = self._held + text
        matches = [(text.find(stop), stop) for stop in self._stops if stop in text]
        if matches:
            position, self.match = min(matches)
            self._held = ""
            return text[:position]
        held = self._possible_start(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """Return the text that was held back and is not a stop text."""
        held, self._held = self._held, ""
        return held

    def _possible_start(self, text: str) -> int:
        """Return how many characters at the end are the beginning of a stop text."""
        longest = min(max(map(len, self._stops), default=1) - 1, len(text))
        return next((n for n in range(longest, 0, -1) if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)
