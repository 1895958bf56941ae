"""Every turn of the playground in MLflow, a trace per side, written behind the back of whoever talks.

Turns are held in memory until MLflow has them: what a crash takes, or an outage longer than the memory, is a trace and never
a vote. Votes are in the journal, and its mirror makes the traces that a vote needs where there are none.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import JournalError, TrackingError, in_short
from mlflow_finetune_plugin.store.clients import is_refusal
from mlflow_finetune_plugin.votes.journal.journal import Journal
from mlflow_finetune_plugin.votes.journal.tombstones import Tombstones
from mlflow_finetune_plugin.votes.journal.vote import ANONYMOUS, Turn
from mlflow_finetune_plugin.votes.mlflow.spoken_answer import SpokenAnswer
from mlflow_finetune_plugin.votes.mlflow.traces import SpokenTurn, VoteTraces, asked

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException

logger = logging.getLogger(__name__)

MOST_TURNS = 2_000
MOST_CHARS = 100_000_000
"""Characters of prompts and answers held at most; a turn's prompt is the conversation up to it."""
_BATCH = 16  # turns a request; each holds up who wants to forget
_FIRST_WAIT_S = 0.5
_TO_END_S = 1.0  # a thread that waits until the very last wakes then, and needs a moment to end
_MOST_TRIES = 5
_QUIET_S, _LONGEST_QUIET_WAIT_S = 0.5, 3.0
_NEEDS_SOMEBODY = {"PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"}


@dataclass(frozen=True)
class _Note:
    spoken: SpokenTurn
    mark: int  # what had been forgotten when it was noted
    chars: int


class TurnLog:
    """Writes turns to ``tracking_uri`` (None: where MLflow tracks) from a thread of its own, between ``start`` and ``stop``.

    ``fault`` says why MLflow takes none now; ``lost`` counts turns that will have no trace, unless they are voted on.
    """

    def __init__(
        self,
        journal: Journal,
        tracking_uri: str | None = None,
        *,
        most_turns: int = MOST_TURNS,
        most_chars: int = MOST_CHARS,
        longest_wait_s: float = 60.0,
    ) -> None:
        self._journal = journal
        self._traces = VoteTraces(journal.model, tracking_uri)
        self._tombstones = Tombstones(journal)
        self._most_turns, self._most_chars, self._longest_wait_s = most_turns, most_chars, longest_wait_s
        self._experiment_id: str | None = None
        self._notes: deque[_Note] = deque()
        self._chars = self._tries = self._noted = self._flushing = 0
        self._changed = threading.Condition()
        self._deadline: float | None = None  # set once it is stopping
        self._thread: threading.Thread | None = None
        self._is_full = False
        self.fault: str | None = None
        self.lost = 0

    @property
    def pending(self) -> int:
        """Turns noted that MLflow does not have yet."""
        return len(self._notes)

    def note(self, turn: Turn, answers: Sequence[SpokenAnswer], voter: str = ANONYMOUS) -> bool:
        """Takes a turn that is over; ``voter`` as ``Journal.voter`` gives it. Returns at once.

        False where it cannot be kept: too much waits already, or the log was stopped.
        """
        chars = sum(len(message["content"]) for message in turn.messages) + sum(
            len(said.side.answer) for said in answers
        )
        note = _Note(SpokenTurn(turn, tuple(answers), voter), self._tombstones.mark(), chars)
        with self._changed:
            is_stopped = self._deadline is not None
            is_full = len(self._notes) >= self._most_turns or self._chars + chars > self._most_chars
            if is_stopped or is_full:
                self.lost += 1
                if is_stopped or not self._is_full:  # once for each time that it fills
                    why = "the log was stopped" if is_stopped else f"{len(self._notes)} wait already"
                    logger.warning("turns of %s: one is not kept, and has no trace: %s", self._journal.model, why)
                self._is_full = is_full
                return False
            self._is_full = False
            self._notes.append(note)
            self._noted += 1
            self._chars += chars
            self._changed.notify_all()
        return True

    def start(self) -> None:
        """Writes until ``stop``; an outage is logged, kept in ``fault`` and waited for."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._deadline = None
        self._thread = threading.Thread(target=self._run, name="turn-log", daemon=True)
        self._thread.start()

    def flush(self, timeout_s: float) -> bool:
        """Waits until MLflow has all that was noted; False where it does not in that time."""
        with self._changed:
            self._flushing += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: not self._notes, timeout_s)
            finally:
                self._flushing -= 1

    def stop(self, timeout_s: float = 10.0) -> bool:
        """Writes what it can in that time and ends; what is left is lost, counted and logged. False where it is in a request."""
        with self._changed:
            self._deadline = time.monotonic() + timeout_s
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s + _TO_END_S)
        with self._changed:
            left = len(self._notes)
            self.lost += left
            self._notes.clear()
            self._chars = 0
        if self.lost:
            logger.warning(
                "turns of %s: %d have no trace, %d of them for the end", self._journal.model, self.lost, left
            )
        return self._thread is None or not self._thread.is_alive()

    # in the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        wait_s = _FIRST_WAIT_S
        while notes := self._next():
            try:
                self._write(notes)
            except (TrackingError, JournalError, OSError) as error:
                if self.fault is None:
                    logger.warning("turns of %s wait in memory: %s", self._journal.model, error)
                self.fault = str(error)
                self._give_up_after_tries()
                self._pause(wait_s)
                wait_s = min(self._longest_wait_s, 2 * wait_s)
                continue
            if self.fault is not None:
                logger.warning("turns of %s: written again after: %s", self._journal.model, self.fault)
            self.fault, wait_s, self._tries = None, _FIRST_WAIT_S, 0
            self._drop(len(notes))

    def _next(self) -> list[_Note]:
        """The oldest, once there are any; none when it is time to end. They stay in their place until they are written."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._notes) or self._deadline is not None)
            self._wait_for_quiet()
            if self._deadline is not None and time.monotonic() >= self._deadline:
                return []
            size = 1 if self._tries else _BATCH  # after a failure one by one: one of them may be the reason
            return [self._notes[place] for place in range(min(size, len(self._notes)))]

    def _wait_for_quiet(self) -> None:
        """Many who ask at once also end at once, and then wait for their pages: their traces need not be written just then."""
        until = time.monotonic() + _LONGEST_QUIET_WAIT_S
        while self._deadline is None and not self._flushing and time.monotonic() < until:
            before = self._noted
            self._changed.wait(_QUIET_S)
            if self._noted == before:
                return

    def _pause(self, wait_s: float) -> None:
        with self._changed:
            if self._deadline is not None:
                wait_s = min(wait_s, self._deadline - time.monotonic())
            until = time.monotonic() + wait_s
            was_stopping = self._deadline is not None
            while (left := until - time.monotonic()) > 0 and (self._deadline is not None) == was_stopping:
                self._changed.wait(left)  # a new note wakes it as well, and waits with the others

    def _drop(self, count: int) -> None:
        with self._changed:
            for _ in range(min(count, len(self._notes))):  # stop() may have taken them
                self._chars -= self._notes.popleft().chars
            self._changed.notify_all()

    def _write(self, notes: Sequence[_Note]) -> None:
        """Under the lock of those who forget: what is written is there to be found, what is forgotten is not written."""
        from mlflow.exceptions import MlflowException

        with self._journal.mirroring():
            spoken = [note.spoken for note in notes if not self._is_forgotten(note)]
            with asked(self._traces.server):
                if self._experiment_id is None:
                    self._experiment_id = self._traces.experiment_made()
                try:
                    self._traces.record(spoken, self._experiment_id)
                except MlflowException as error:
                    if not is_refusal(error) or error.error_code in _NEEDS_SOMEBODY:
                        raise
                    self._refused(spoken, error)

    def _is_forgotten(self, note: _Note) -> bool:
        spoken = note.spoken
        return self._tombstones.covers(
            note.mark,
            voter=spoken.voter or ANONYMOUS,
            session=spoken.turn.session,
            started_at_ms=min((answer.started_at_ms for answer in spoken.answers), default=0),
        )

    def _refused(self, spoken: Sequence[SpokenTurn], error: MlflowException) -> None:
        """One alone is left, if the experiment still is there; several are written again one by one."""
        from mlflow.exceptions import MlflowException

        self._experiment_id = self._traces.experiment()
        if self._experiment_id is None:  # it was deleted for good: begin anew
            raise error
        if len(spoken) == 1:
            self._lose(spoken[0], error)
            return
        for one in spoken:
            try:
                self._traces.record([one], self._experiment_id)
            except MlflowException as again:
                if not is_refusal(again) or again.error_code in _NEEDS_SOMEBODY:
                    raise
                self._lose(one, again)

    def _give_up_after_tries(self) -> None:
        """A turn that fails again and again on a server that answers otherwise must not hold up all others."""
        self._tries += 1
        if self._tries < _MOST_TRIES:
            return
        try:
            self._traces.experiment()
        except Exception:  # the server is away: it is not the turn's fault
            logger.debug("turns of %s: the server does not answer either", self._journal.model, exc_info=True)
            return
        with self._changed:
            spoken = self._notes[0].spoken if self._notes else None
        if spoken is not None:
            self._lose(spoken, self.fault)
            self._drop(1)
        self._tries = 0

    def _lose(self, spoken: SpokenTurn, reason: object) -> None:
        self.lost += 1
        told = in_short(reason) if isinstance(reason, Exception) else reason
        logger.error("turns of %s: %s has no trace: %s", self._journal.model, spoken.turn.turn_id, told)
