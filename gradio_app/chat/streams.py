"""Receive the answers of all sessions as fast as they come, and show them at the pace of their turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

import aiohttp

from gradio_app.chat.client import receive
from gradio_app.chat.pacing import JointPace, OpenPace, Pace
from gradio_app.chat.pictures import request_messages
from gradio_app.chat.session import ComparisonTurn, Prompt, Session, SessionError
from gradio_app.chat.update_interval import LEAST_S, UpdateInterval
from gradio_app.settings import PlaygroundSettings

_LEAST_SLEEP_S = 0.02
_PACE_S = 0.25
_UNWATCHED_S = 15.0


@dataclass
class _ActiveTurn:
    """The answers that are received for a turn. ``unwatched`` is the turn until its page watches it."""

    tasks: list[asyncio.Task[None]]
    unwatched: ComparisonTurn | None

    @property
    def running(self) -> int:
        return sum(not task.done() for task in self.tasks)


class Streams:
    """The answers of all sessions, on one event loop.

    ``http`` returns the HTTP session; ``over`` is called for every ended turn.
    """

    def __init__(
        self,
        settings: PlaygroundSettings,
        http: Callable[[], aiohttp.ClientSession],
        over: Callable[[Session, ComparisonTurn], Awaitable[None]],
    ) -> None:
        self._settings, self._http, self._over = settings, http, over
        self._update_interval = UpdateInterval()
        self._receiving: dict[str, _ActiveTurn] = {}  # The last turn of each session.
        self._leaving: set[asyncio.Task[None]] = set()

    async def ask(self, session: Session, prompt: Prompt) -> AsyncIterator[tuple[ComparisonTurn, list[str]]]:
        """Send a prompt and yield the turn with the text to show per position until it is over.

        Raises SessionError first.
        """
        turn = self.start(session, prompt)
        async for texts in self.watch(session, turn):
            yield turn, texts

    def start(self, session: Session, prompt: Prompt) -> ComparisonTurn:
        """Send a prompt to all sides at once. Raises SessionError, and then sends nothing.

        If no page watches the turn within 15 seconds, the page was closed, and the answers are stopped.
        """
        before = self._receiving.get(session.session_id)
        sides, allowed = len(session.contenders), self._settings.max_streams_per_session
        if sides > allowed:
            raise SessionError(
                f"{sides} sides are {sides} streams, and this playground allows {allowed}. Choose fewer."
            )
        if (before.running if before is not None else 0) + sides > allowed:
            raise SessionError("This session is still receiving answers. Stop them, or wait.")
        if sum(active.running > 0 for active in self._receiving.values()) >= self._settings.max_streams:
            raise SessionError("Many people are using the playground now. Try again in a moment.")
        turn = session.begin(prompt)
        turn.shown = (0,) * sides if turn.is_blind else None
        client = self._http()
        messages = request_messages(turn.messages, session.pictures)
        tasks = [
            asyncio.create_task(
                receive(client, side.endpoint, side.model, messages, turn.samplings[position], turn.answers[position])
            )
            for position, side in enumerate(turn.contenders)
        ]
        self._receiving[session.session_id] = _ActiveTurn(tasks, turn)
        asyncio.get_running_loop().call_later(_UNWATCHED_S, self._leave_unwatched, session, turn)
        return turn

    def unwatched(self, session: Session) -> ComparisonTurn | None:
        """Return the turn that was started and is not watched yet."""
        receiving = self._receiving.get(session.session_id)
        return receiving.unwatched if receiving is not None else None

    async def watch(self, session: Session, turn: ComparisonTurn) -> AsyncIterator[list[str]]:
        """Yield the text to show per position. Closing this iterator stops the answers."""
        receiving = self._receiving[session.session_id]
        receiving.unwatched = None
        pace: Pace = JointPace() if turn.is_blind else OpenPace()
        self._update_interval.stream_started()
        try:
            async for lengths in self._paced(turn, pace, receiving.tasks):
                turn.shown = tuple(lengths) if turn.shown is not None else None
                yield [turn.visible(position, length) for position, length in enumerate(lengths)]
                self._update_interval.record_update()
        finally:
            self._update_interval.stream_ended()
            await self._close(session, turn, receiving)

    def _leave_unwatched(self, session: Session, turn: ComparisonTurn) -> None:
        receiving = self._receiving.get(session.session_id)
        if receiving is not None and receiving.unwatched is turn:
            receiving.unwatched = None
            task = asyncio.create_task(self._close(session, turn, receiving))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def _close(self, session: Session, turn: ComparisonTurn, receiving: _ActiveTurn) -> None:
        _end(turn, receiving.tasks)
        if not turn.is_over:
            await self._halt(turn, receiving)
        if not receiving.running and self._receiving.get(session.session_id) is receiving:
            self._receiving.pop(session.session_id)
        await self._over(session, turn)

    async def _paced(
        self, turn: ComparisonTurn, pace: Pace, tasks: Sequence[asyncio.Task[None]]
    ) -> AsyncIterator[list[int]]:
        """Yield the lengths to show. The pace is computed often; the page is updated as often as the update interval allows.

        The end of a side is shown at once, except while names are hidden, because the moment would reveal the side.
        """
        before: list[int] | None = None
        next_s, ended = 0.0, 0
        wakes = asyncio.ALL_COMPLETED if turn.is_blind else asyncio.FIRST_COMPLETED
        while True:
            if any(answer.is_stopped for answer in turn.answers):
                yield [answer.length for answer in turn.answers]
                return
            lengths = pace.shown(turn.answers)
            if pace.is_over(turn.answers):
                yield [answer.length for answer in turn.answers]
                return
            has_ended = not turn.is_blind and sum(task.done() for task in tasks) > ended
            if lengths != before and (has_ended or time.monotonic() >= next_s):
                yield lengths
                before, ended = lengths, sum(task.done() for task in tasks)
                next_s = time.monotonic() + self._update_interval.interval_s
            early_s = next_s - time.monotonic()
            wait_s = min(_PACE_S, early_s if early_s > 0 else LEAST_S)
            pending = [task for task in tasks if not task.done()]
            if pending:
                await asyncio.wait(pending, timeout=wait_s, return_when=wakes)
            else:  # Everything is received, so only the display is left.
                await asyncio.sleep(min(wait_s, max(_LEAST_SLEEP_S, pace.left_s(turn.answers))))

    def stop(self, session: Session) -> None:
        """Stop receiving. The text received so far stays."""
        receiving, turn = self._receiving.get(session.session_id), session.last
        if receiving is not None and turn is not None:
            _end(turn, receiving.tasks)

    async def _halt(self, turn: ComparisonTurn, receiving: _ActiveTurn) -> None:
        for task, answer in zip(receiving.tasks, turn.answers, strict=True):
            answer.is_stopped = answer.is_stopped or not task.done()
            task.cancel()
        await asyncio.gather(*receiving.tasks, return_exceptions=True)
        now = time.monotonic()
        for answer in turn.answers:
            answer.ended_at = answer.ended_at if answer.ended_at is not None else now  # A request that never started.


def _end(turn: ComparisonTurn, tasks: Sequence[asyncio.Task[None]]) -> None:
    """Stop receiving.

    While names are hidden, drop text that was not shown, because its length would reveal the faster side.
    """
    for position, (task, answer) in enumerate(zip(tasks, turn.answers, strict=True)):
        is_cut = turn.shown is not None and turn.shown[position] < answer.length
        if is_cut or not task.done():
            answer.is_stopped = True
            task.cancel()
        if turn.shown is not None and is_cut:
            answer.cut(turn.shown[position])
    turn.shown = None
