"""How much of each answer is shown: all that has come, or, while blind, as much of each as of the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from gradio_app.client import Answer

LONGEST_WAIT_S = 15.0
"""For a side that says nothing: after this the others go on alone, for a dead endpoint must not look like a slow one."""
LONGEST_REST_S = 8.0
"""In which the rest of the longest answer is shown at the latest, once everything has come."""


class Pace(Protocol):
    """Of one turn; asked again and again while its answers come."""

    def shown(self, answers: Sequence[Answer]) -> list[int]:
        """Characters of each answer to show now."""

    def is_over(self, answers: Sequence[Answer]) -> bool:
        """Everything has come, and is shown."""


class OpenPace:
    """Everything as it comes."""

    def shown(self, answers: Sequence[Answer]) -> list[int]:
        return [answer.length for answer in answers]

    def is_over(self, answers: Sequence[Answer]) -> bool:
        return all(answer.is_over for answer in answers)


class JointPace:
    """One number of characters for all sides: what the slowest of those still speaking has said.

    So nobody sees which side is faster: all begin at the same moment and grow alike, and each ends at its own length,
    which its text shows anyway. When the slowest has ended, what others have said beyond it is not thrown in at once
    (that would say that they were done before) but shown at the pace so far. A side that has said nothing for
    ``longest_wait_s`` holds nobody up.
    """

    def __init__(self, longest_wait_s: float = LONGEST_WAIT_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._longest_wait_s, self._clock = longest_wait_s, clock
        self._news: list[tuple[int, float]] = []  # per side: its length, and when it grew to it
        self._began: float | None = None
        self._last = clock()
        self._reached = 0.0

    def shown(self, answers: Sequence[Answer]) -> list[int]:
        now = self._clock()
        self._note_news(answers, now)
        speaking = [
            answer.length
            for answer, (_, since) in zip(answers, self._news, strict=True)
            if not answer.is_over and now - since < self._longest_wait_s
        ]
        longest = max((answer.length for answer in answers), default=0)
        reach = float(min(speaking, default=longest))
        if len(speaking) < len(answers) and self._began is not None:  # somebody has ended: no faster than so far
            reach = min(reach, self._rested(longest, now))
        if reach > self._reached:
            self._began = self._began if self._began is not None else now
            self._reached = reach
        self._last = now
        return [min(int(self._reached), answer.length) for answer in answers]

    def is_over(self, answers: Sequence[Answer]) -> bool:
        return all(answer.is_over for answer in answers) and self._reached >= max(answer.length for answer in answers)

    def _note_news(self, answers: Sequence[Answer], now: float) -> None:
        if not self._news:
            self._news = [(0, now) for _ in answers]
        for index, answer in enumerate(answers):
            if answer.length > self._news[index][0]:
                self._news[index] = (answer.length, now)

    def _rested(self, longest: int, now: float) -> float:
        """How far it may have come by now, at its pace so far, or faster where the rest would take too long."""
        assert self._began is not None
        elapsed = max(self._last - self._began, 1e-3)
        pace = max(self._reached / elapsed, longest / LONGEST_REST_S)
        return self._reached + pace * (now - self._last)
