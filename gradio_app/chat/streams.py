"""Answers on their way: asked for at once, received as fast as they come, shown at a turn's pace, ended when nobody looks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

import aiohttp

from gradio_app.chat.client import receive
from gradio_app.chat.pacing import JointPace, OpenPace, Pace
from gradio_app.chat.session import ComparisonTurn, Prompt, Session, SessionError
from gradio_app.chat.tempo import LEAST_S, Tempo
from gradio_app.settings import PlaygroundSettings

_LEAST_SLEEP_S = 0.02
_LOOK_S = 0.25
_UNWATCHED_S = 15.0


@dataclass
class _ActiveTurn:
    """What is being received for one turn. ``unwatched``: that turn, as long as its page has not come for it."""

    tasks: list[asyncio.Task[None]]
    unwatched: ComparisonTurn | None

    @property
    def running(self) -> int:
        return sum(not task.done() for task in self.tasks)


class Streams:
    """Of all sessions, on one event loop. ``http`` gives the connections, ``over`` is told of every turn that has ended."""

    def __init__(
        self,
        settings: PlaygroundSettings,
        http: Callable[[], aiohttp.ClientSession],
        over: Callable[[Session, ComparisonTurn], Awaitable[None]],
    ) -> None:
        self._settings, self._http, self._over = settings, http, over
        self._tempo = Tempo()
        self._receiving: dict[str, _ActiveTurn] = {}  # the last one of each session
        self._leaving: set[asyncio.Task[None]] = set()

    async def ask(self, session: Session, prompt: Prompt) -> AsyncIterator[tuple[ComparisonTurn, list[str]]]:
        """The turn, and per position the text to show: again and again until all is said. Raises SessionError before the first."""
        turn = self.start(session, prompt)
        async for texts in self.watch(session, turn):
            yield turn, texts

    def start(self, session: Session, prompt: Prompt) -> ComparisonTurn:
        """Asks all sides at once; they are received as fast as they come. Raises SessionError; then nobody was asked.

        A page that does not ``watch`` within some seconds was closed: then the answers are stopped.
        """
        before = self._receiving.get(session.session_id)
        sides, allowed = len(session.contenders), self._settings.max_streams_per_session
        if sides > allowed:
            raise SessionError(
                f"{sides} sides are {sides} streams, and this playground allows {allowed}. Choose fewer."
            )
        if (before.running if before is not None else 0) + sides > allowed:
            raise SessionError("This session has answers under way already. Stop them, or wait.")
        if sum(found.running > 0 for found in self._receiving.values()) >= self._settings.max_streams:
            raise SessionError("Many people are asking right now. Try again in a moment.")
        turn = session.begin(prompt)
        turn.shown = (0,) * sides if turn.is_blind else None
        client = self._http()
        tasks = [
            asyncio.create_task(
                receive(client, side.endpoint, side.model, turn.messages, turn.samplings[place], turn.answers[place])
            )
            for place, side in enumerate(turn.contenders)
        ]
        self._receiving[session.session_id] = _ActiveTurn(tasks, turn)
        asyncio.get_running_loop().call_later(_UNWATCHED_S, self._leave_unwatched, session, turn)
        return turn

    def unwatched(self, session: Session) -> ComparisonTurn | None:
        """The turn that was started and that nobody watches yet."""
        receiving = self._receiving.get(session.session_id)
        return receiving.unwatched if receiving is not None else None

    async def watch(self, session: Session, turn: ComparisonTurn) -> AsyncIterator[list[str]]:
        """Per position the text to show. Who stops listening stops the answers."""
        receiving = self._receiving[session.session_id]
        receiving.unwatched = None
        pace: Pace = JointPace() if turn.is_blind else OpenPace()
        self._tempo.stream_started()
        try:
            async for lengths in self._paced(turn, pace, receiving.tasks):
                turn.shown = tuple(lengths) if turn.shown is not None else None
                yield [turn.visible(place, length) for place, length in enumerate(lengths)]
                self._tempo.record_update()
        finally:
            self._tempo.stream_ended()
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
        """The pace looks often, for it goes by what it sees; a page is told as often as there is time for it.

        That a side has ended is told at once, but not while blind: the moment would say which.
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
                next_s = time.monotonic() + self._tempo.interval_s
            early_s = next_s - time.monotonic()
            wait_s = min(_LOOK_S, early_s if early_s > 0 else LEAST_S)
            pending = [task for task in tasks if not task.done()]
            if pending:
                await asyncio.wait(pending, timeout=wait_s, return_when=wakes)
            else:  # nobody waits for an update that is due later
                await asyncio.sleep(min(wait_s, max(_LEAST_SLEEP_S, pace.left_s(turn.answers))))

    def stop(self, session: Session) -> None:
        """Ends what is being received; what has come stays."""
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
            answer.ended_at = answer.ended_at if answer.ended_at is not None else now  # never began


def _end(turn: ComparisonTurn, tasks: Sequence[asyncio.Task[None]]) -> None:
    """Ends what is being received; blind, forgets what was not shown: its length would say which side is faster."""
    for place, (task, answer) in enumerate(zip(tasks, turn.answers, strict=True)):
        is_cut = turn.shown is not None and turn.shown[place] < answer.length
        if is_cut or not task.done():
            answer.is_stopped = True
            task.cancel()
        if turn.shown is not None and is_cut:
            answer.cut(turn.shown[place])
    turn.shown = None
