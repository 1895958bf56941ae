"""The turn log: writes every turn of the playground to MLflow in the background, one trace per side.

Turns are held in memory until MLflow has them. A crash, or an outage that fills the memory, can lose traces but never votes:
votes are in the journal, and the vote mirror creates missing traces.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import JournalError, TrackingError, in_short
from mlflow_finetune_plugin.votes.journal.journal import Journal
from mlflow_finetune_plugin.votes.journal.tombstones import Tombstones
from mlflow_finetune_plugin.votes.journal.vote import ANONYMOUS, Turn
from mlflow_finetune_plugin.votes.mlflow.answer_trace import TracedAnswer
from mlflow_finetune_plugin.votes.mlflow.traces import TracedTurn, VoteTraces, is_permanent_refusal, tracking_errors

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException

logger = logging.getLogger(__name__)

MOST_TURNS = 2_000
MOST_CHARS = 100_000_000
"""The most characters of prompts and answers in memory; the prompt of a turn is the conversation up to it."""
_BATCH = 16  # Turns per request; a deletion waits for a request to end.
_FIRST_WAIT_S = 0.5
_TO_END_S = 1.0  # A thread that waits until the deadline needs a moment to end after it.
_MOST_TRIES = 5
_QUIET_S, _LONGEST_QUIET_WAIT_S = 0.5, 3.0


@dataclass(frozen=True)
class _Note:
    traced: TracedTurn
    mark: int  # The end of the list of deletions at that time.
    chars: int


class TurnLog:
    """Writes turns to MLflow in a background thread, between ``start`` and ``stop``.

    ``tracking_uri`` None: the server that MLflow uses now. ``fault`` is the reason of the current outage; ``lost`` is the number
    of turns that will have no trace unless a user votes on them.
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
        self._deadline: float | None = None  # Set when stopping.
        self._thread: threading.Thread | None = None
        self._is_full = False
        self.fault: str | None = None
        self.lost = 0

    @property
    def pending(self) -> int:
        """The number of turns that MLflow does not have yet."""
        return len(self._notes)

    def note(self, turn: Turn, answers: Sequence[TracedAnswer], voter: str = ANONYMOUS) -> bool:
        """Add a turn that is over; returns at once. ``voter`` is the hash of ``Journal.voter``.

        Returns:
            False if the turn is dropped, because the memory is full or the log was stopped.
        """
        chars = sum(len(message["content"]) for message in turn.messages) + sum(
            len(answer.side.answer) for answer in answers
        )
        note = _Note(TracedTurn(turn, tuple(answers), voter), self._tombstones.mark(), chars)
        with self._changed:
            is_stopped = self._deadline is not None
            is_full = len(self._notes) >= self._most_turns or self._chars + chars > self._most_chars
            if is_stopped or is_full:
                self.lost += 1
                if is_stopped or not self._is_full:  # Log it once each time that the memory fills.
                    why = "the log was stopped" if is_stopped else f"{len(self._notes)} turns are waiting"
                    logger.warning("turns of %s: a turn is dropped and has no trace: %s", self._journal.model, why)
                self._is_full = is_full
                return False
            self._is_full = False
            self._notes.append(note)
            self._noted += 1
            self._chars += chars
            self._changed.notify_all()
        return True

    def start(self) -> None:
        """Start the background thread. It logs an outage, keeps the reason in ``fault`` and tries again."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._deadline = None
        self._thread = threading.Thread(target=self._run, name="turn-log", daemon=True)
        self._thread.start()

    def flush(self, timeout_s: float) -> bool:
        """Wait until MLflow has all turns; return False if that takes longer than ``timeout_s``."""
        with self._changed:
            self._flushing += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: not self._notes, timeout_s)
            finally:
                self._flushing -= 1

    def stop(self, timeout_s: float = 10.0) -> bool:
        """Write as much as possible in that time and end the thread. The remaining turns are lost, counted and logged.

        Returns:
            False if the thread still waits for a request.
        """
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
                "turns of %s: %d have no trace, %d of them because the log was stopped",
                self._journal.model,
                self.lost,
                left,
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
                logger.warning("turns of %s: the turn log works again after: %s", self._journal.model, self.fault)
            self.fault, wait_s, self._tries = None, _FIRST_WAIT_S, 0
            self._drop(len(notes))

    def _next(self) -> list[_Note]:
        """Wait for turns and return the oldest; nothing when it is time to end. They stay queued until they are written."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._notes) or self._deadline is not None)
            self._wait_for_quiet()
            if self._deadline is not None and time.monotonic() >= self._deadline:
                return []
            size = (
                1 if self._tries else _BATCH
            )  # After a failure try one by one, because one of them may be the reason.
            return list(islice(self._notes, size))

    def _wait_for_quiet(self) -> None:
        """Wait until no turn has ended for a moment: pages that just received their answers should not wait for traces."""
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
                self._changed.wait(left)  # A new turn wakes this too, and waits with the others.

    def _drop(self, count: int) -> None:
        with self._changed:
            for _ in range(min(count, len(self._notes))):  # stop() may have removed them.
                self._chars -= self._notes.popleft().chars
            self._changed.notify_all()

    def _write(self, notes: Sequence[_Note]) -> None:
        """Write turns under the lock of deletions, so that a deleted turn is not written after its deletion."""
        from mlflow.exceptions import MlflowException

        with self._journal.mirroring():
            turns = [note.traced for note in notes if not self._is_forgotten(note)]
            with tracking_errors(self._traces.server):
                if self._experiment_id is None:
                    self._experiment_id = self._traces.ensure_experiment()
                try:
                    self._traces.record(turns, self._experiment_id)
                except MlflowException as error:
                    if not is_permanent_refusal(error):
                        raise
                    self._handle_refusal(turns, error)

    def _is_forgotten(self, note: _Note) -> bool:
        traced = note.traced
        return self._tombstones.covers(
            note.mark,
            voter=traced.voter or ANONYMOUS,
            session=traced.turn.session,
            started_at_ms=min((answer.started_at_ms for answer in traced.answers), default=0),
        )

    def _handle_refusal(self, turns: Sequence[TracedTurn], error: MlflowException) -> None:
        """Drop a turn that is refused alone; write several again one by one."""
        from mlflow.exceptions import MlflowException

        self._experiment_id = self._traces.experiment()
        if self._experiment_id is None:  # It was deleted permanently: create it again with the next try.
            raise error
        if len(turns) == 1:
            self._lose(turns[0], error)
            return
        for traced in turns:
            try:
                self._traces.record([traced], self._experiment_id)
            except MlflowException as refusal:
                if not is_permanent_refusal(refusal):
                    raise
                self._lose(traced, refusal)

    def _give_up_after_tries(self) -> None:
        """Drop a turn that fails repeatedly on a server that answers other requests, so that it does not block the others."""
        self._tries += 1
        if self._tries < _MOST_TRIES:
            return
        try:
            self._traces.experiment()
        except Exception:  # The server is away, so the turn is not the reason.
            logger.debug("turns of %s: the server does not answer either", self._journal.model, exc_info=True)
            return
        with self._changed:
            traced = self._notes[0].traced if self._notes else None
        if traced is not None:
            self._lose(traced, self.fault)
            self._drop(1)
        self._tries = 0

    def _lose(self, traced: TracedTurn, reason: object) -> None:
        self.lost += 1
        text = in_short(reason) if isinstance(reason, Exception) else reason
        logger.error("turns of %s: %s has no trace: %s", self._journal.model, traced.turn.turn_id, text)
