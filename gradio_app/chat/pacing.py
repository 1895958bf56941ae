"""How much of each answer is shown: all that has come, or, while blind, as much of each as of the others."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from gradio_app.chat.client import StreamedAnswer

LONGEST_WAIT_S = 15.0
"""For a side that says nothing: after this the others go on alone, for a dead endpoint must not look like a slow one."""
LONGEST_REST_S = 8.0
"""In which the rest of the longest answer is shown at the latest, once everything has come."""
_BEHIND_CHARS = 80
"""How far what is shown stays behind what has come: some words, in which the rhythm of single ones is lost."""
_LEAST_BEHIND_S, _MOST_BEHIND_S = 0.6, 2.0
_AT_ONCE_S = 0.5
_LEAST_TIMED_S = 0.25
_RANDOM = secrets.SystemRandom()


class Pace(Protocol):
    """Of one turn; asked again and again while its answers come."""

    def shown(self, answers: Sequence[StreamedAnswer]) -> list[int]:
        """Characters of each answer to show now."""

    def is_over(self, answers: Sequence[StreamedAnswer]) -> bool:
        """Everything has come, and is shown."""

    def left_s(self, answers: Sequence[StreamedAnswer]) -> float:
        """Seconds until everything is shown, once it has come."""


class OpenPace:
    """Everything as it comes."""

    def shown(self, answers: Sequence[StreamedAnswer]) -> list[int]:
        return [answer.length for answer in answers]

    def is_over(self, answers: Sequence[StreamedAnswer]) -> bool:
        return all(answer.is_over for answer in answers)

    def left_s(self, answers: Sequence[StreamedAnswer]) -> float:
        return 0.0


class JointPace:
    """One number of characters for all sides, never more than the slowest of those still speaking has said.

    So nobody sees which side is faster: all begin at the same moment and grow alike, and each ends at its own length,
    which its text shows anyway. What has come is not shown as it comes: the steps would end where the slower side's
    words end, in the rhythm of its tokens, and half a minute of them says for certain which it is. It is shown evenly,
    some words behind, at a pace that is set anew now and then, with some chance in it. When the slowest has ended, what
    others have said beyond it is not thrown in at once (that would say that they were done before) but shown at the
    pace so far. A side that has said nothing for ``longest_wait_s`` holds nobody up.
    """

    def __init__(
        self,
        longest_wait_s: float = LONGEST_WAIT_S,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = _RANDOM.random,
    ) -> None:
        self._longest_wait_s, self._clock, self._chance = longest_wait_s, clock, chance
        self._news: list[tuple[int, float]] = []  # per side: its length, and when it grew to it
        self._began: float | None = None
        self._last = clock()
        self._reached = 0.0
        self._pace = 0.0  # characters a second
        self._planned_until = 0.0
        self._known = 0  # characters of each when that was planned
        self._joint = (0, 0.0)  # what all have said, or said whole, and when they had

    def shown(self, answers: Sequence[StreamedAnswer]) -> list[int]:
        now = self._clock()
        self._note_news(answers, now)
        there = self._there(answers, now)
        if there > 0 and self._began is None:
            self._began = self._last = now
            self._reached = 1.0  # the first one at once: the wait for it is over
        self._reached = min(self._reached + self._pace * (now - self._last), max(self._reached, float(self._known)))
        self._last = now
        is_new = all(answer.is_over for answer in answers) and self._known < max(answer.length for answer in answers)
        if self._began is not None and (now >= self._planned_until or is_new):
            self._plan(answers, there, now)
        return [min(int(self._reached + 1e-6), answer.length) for answer in answers]

    def is_over(self, answers: Sequence[StreamedAnswer]) -> bool:
        longest = max(answer.length for answer in answers)
        return all(answer.is_over for answer in answers) and self._reached + 1e-6 >= longest

    def left_s(self, answers: Sequence[StreamedAnswer]) -> float:
        """Until the rest is shown, once all has come; 0.0 where that is to be planned yet."""
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

    def _there(self, answers: Sequence[StreamedAnswer], now: float) -> int:
        speaking = [
            answer.length
            for answer, (_, since) in zip(answers, self._news, strict=True)
            if not answer.is_over and now - since < self._longest_wait_s
        ]
        return min(speaking, default=max((answer.length for answer in answers), default=0))

    def _plan(self, answers: Sequence[StreamedAnswer], there: int, now: float) -> None:
        """The pace until the next plan: a part of what is there and not shown, so that it never runs dry."""
        assert self._began is not None
        longest = max(answer.length for answer in answers)
        joint, at = self._joint
        if all(answer.is_over for answer in answers) and self._reached == 1:  # it came at once, and nothing was seen
            self._pace, self._planned_until, self._known = longest / _AT_ONCE_S, now + _AT_ONCE_S, longest
            return
        so_far = joint / max(at - self._began, _LEAST_TIMED_S)
        wanted_s = min(_MOST_BEHIND_S, _BEHIND_CHARS / max(so_far, 1.0))
        behind_s = max(_LEAST_BEHIND_S, min(wanted_s, now - self._began))  # little is known at first: look again soon
        chance = 0.3 + 1.4 * self._chance()
        self._pace = (there - self._reached) / behind_s * chance
        if there > joint:  # one has ended, or is not waited for: no faster than so far
            self._pace = min(self._pace, max(so_far, longest / LONGEST_REST_S) * chance)
        if all(answer.is_over for answer in answers):
            self._pace = max(so_far, longest / LONGEST_REST_S) * chance
            if joint == longest:  # as long as each other, and nobody has more to say
                self._pace = max(self._pace, (longest - self._reached) / _AT_ONCE_S)
        self._planned_until, self._known = now + behind_s / 2, there
