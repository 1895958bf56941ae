"""How much of each answer is shown: everything received, or, while names are hidden, equally much of each."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from gradio_app.chat.client import StreamedAnswer

LONGEST_WAIT_S = 15.0
"""After this time without text from one side the others continue, so that a dead endpoint does not look slow."""
LONGEST_REST_S = 8.0
"""The longest time that the rest of an answer takes to appear once everything has been received."""
_BEHIND_CHARS = 80
"""How far the display stays behind the received text. A delay of some words hides the rhythm of single tokens."""
_LEAST_BEHIND_S, _MOST_BEHIND_S = 0.6, 2.0
_AT_ONCE_S = 0.5
_LEAST_TIMED_S = 0.25
_RANDOM = secrets.SystemRandom()


class Pace(Protocol):
    """How much of one turn's answers to show, queried again and again while they arrive."""

    def shown(self, answers: Sequence[StreamedAnswer]) -> list[int]:
        """Return the characters of each answer to show now."""

    def is_over(self, answers: Sequence[StreamedAnswer]) -> bool:
        """Whether everything has been received and shown."""

    def left_s(self, answers: Sequence[StreamedAnswer]) -> float:
        """Return the seconds until everything is shown, once everything has been received."""


class OpenPace:
    """Show everything as it arrives."""

    def shown(self, answers: Sequence[StreamedAnswer]) -> list[int]:
        return [answer.length for answer in answers]

    def is_over(self, answers: Sequence[StreamedAnswer]) -> bool:
        return all(answer.is_over for answer in answers)

    def left_s(self, answers: Sequence[StreamedAnswer]) -> float:
        return 0.0


class JointPace:
    """Show the same number of characters of all sides, at most as many as the slowest unfinished side has sent.

    The display does not reveal which side is faster: all sides start at the same moment and grow alike, and each ends
    at its length, which its text shows anyway. Text is not shown as it arrives, because the steps would follow the
    tokens of the slower side, and half a minute of that rhythm identifies it. Text is shown evenly, some words behind,
    at a pace that changes from time to time by a random factor. When the slowest side has ended, the rest of the others
    appears at the pace so far; to show it at once would reveal that they ended earlier. A side that has sent nothing
    for ``longest_wait_s`` no longer delays the others.
    """

    def __init__(
        self,
        longest_wait_s: float = LONGEST_WAIT_S,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = _RANDOM.random,
    ) -> None:
        self._longest_wait_s, self._clock, self._chance = longest_wait_s, clock, chance
        self._news: list[tuple[int, float]] = []  # Per side: its length, and when it reached that length.
        self._began: float | None = None
        self._last = clock()
        self._reached = 0.0
        self._pace = 0.0  # Characters per second.
        self._planned_until = 0.0
        self._planned_chars = 0  # Characters of each side at the time of the plan.
        self._joint = (0, 0.0)  # The characters that all sides have sent, and when they had.

    def shown(self, answers: Sequence[StreamedAnswer]) -> list[int]:
        now = self._clock()
        self._note_news(answers, now)
        available = self._available(answers, now)
        if available > 0 and self._began is None:
            self._began = self._last = now
            self._reached = 1.0  # The first character appears at once, which ends the wait.
        self._reached = min(
            self._reached + self._pace * (now - self._last), max(self._reached, float(self._planned_chars))
        )
        self._last = now
        is_new = all(answer.is_over for answer in answers) and self._planned_chars < max(
            answer.length for answer in answers
        )
        if self._began is not None and (now >= self._planned_until or is_new):
            self._plan(answers, available, now)
        return [min(int(self._reached + 1e-6), answer.length) for answer in answers]

    def is_over(self, answers: Sequence[StreamedAnswer]) -> bool:
        longest = max(answer.length for answer in answers)
        return all(answer.is_over for answer in answers) and self._reached + 1e-6 >= longest

    def left_s(self, answers: Sequence[StreamedAnswer]) -> float:
        """Return the seconds until the rest is shown, once all has been received; 0.0 before the first plan."""
        left = max(answer.length for answer in answers) - self._reached
        return max(0.0, left / self._pace) if self._pace > 0 else 0.0

    def _note_news(self, answers: Sequence[StreamedAnswer], now: float) -> None:
        if not self._news:
            self._news = [(0, now) for _ in answers]
        for index, answer in enumerate(answers):
            if answer.length > self._news[index][0]:
                self._news[index] = (answer.length, now)
        joint = min(answer.length for answer in answers)
        if joint > self._joint[0]:
            self._joint = (joint, now)

    def _available(self, answers: Sequence[StreamedAnswer], now: float) -> int:
        speaking = [
            answer.length
            for answer, (_, since) in zip(answers, self._news, strict=True)
            if not answer.is_over and now - since < self._longest_wait_s
        ]
        return min(speaking, default=max((answer.length for answer in answers), default=0))

    def _plan(self, answers: Sequence[StreamedAnswer], available: int, now: float) -> None:
        """Set the pace until the next plan: slow enough that the received text lasts until then."""
        assert self._began is not None
        longest = max(answer.length for answer in answers)
        joint, at = self._joint
        if (
            all(answer.is_over for answer in answers) and self._reached == 1
        ):  # Everything came in one chunk, so no speed can be seen.
            self._pace, self._planned_until, self._planned_chars = longest / _AT_ONCE_S, now + _AT_ONCE_S, longest
            return
        so_far = joint / max(at - self._began, _LEAST_TIMED_S)
        target_s = min(_MOST_BEHIND_S, _BEHIND_CHARS / max(so_far, 1.0))
        behind_s = max(
            _LEAST_BEHIND_S, min(target_s, now - self._began)
        )  # The speed is uncertain at first, so plan again soon.
        chance = 0.3 + 1.4 * self._chance()
        self._pace = (available - self._reached) / behind_s * chance
        if available > joint:  # A side has ended or is silent: do not speed up.
            self._pace = min(self._pace, max(so_far, longest / LONGEST_REST_S) * chance)
        if all(answer.is_over for answer in answers):
            self._pace = max(so_far, longest / LONGEST_REST_S) * chance
            if joint == longest:  # All have the same length, so nothing can be revealed.
                self._pace = max(self._pace, (longest - self._reached) / _AT_ONCE_S)
        self._planned_until, self._planned_chars = now + behind_s / 2, available
