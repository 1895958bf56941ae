"""The vote mirror: writes the votes of the journal to MLflow.

The mirror writes each vote at least once; after an outage or a crash some votes are written twice, and readers skip the copies.
It writes the traces, then the feedback on both, then the mark in the journal. After an interruption the next flush continues
from the mark and finds existing traces by their ids.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from mlflow_finetune_plugin.errors import JournalError, TrackingError, in_short
from mlflow_finetune_plugin.store.names import VOTE_FEEDBACK, VOTE_ID_METADATA
from mlflow_finetune_plugin.votes.journal.journal import Journal
from mlflow_finetune_plugin.votes.journal.lines import Entry
from mlflow_finetune_plugin.votes.mlflow.feedback import feedback_of
from mlflow_finetune_plugin.votes.mlflow.traces import VoteTraces, is_permanent_refusal, tracking_errors

logger = logging.getLogger(__name__)

_MOST_PER_FLUSH = 1000


@dataclass(frozen=True)
class FlushResult:
    """The number of votes and changes that a flush wrote, and of those that the server refused."""

    mirrored: int
    refused: int


class Mirror:
    """Writes the votes of a journal to MLflow, in a background thread or by ``flush``.

    ``tracking_uri`` None: the server that MLflow uses now. ``fault`` is the reason of the current outage.
    """

    def __init__(
        self, journal: Journal, tracking_uri: str | None = None, *, poll_s: float = 0.5, longest_wait_s: float = 60.0
    ) -> None:
        self._journal = journal
        self._traces = VoteTraces(journal.model, tracking_uri)
        self._poll_s, self._longest_wait_s = poll_s, longest_wait_s
        self._experiment_id: str | None = None
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self.fault: str | None = None

    @property
    def pending(self) -> int:
        """The number of votes and changes that MLflow may not have yet."""
        return self._journal.sequence - self._journal.mirrored(self._traces.server)

    def flush(self) -> FlushResult:
        """Write all pending votes now. Raises TrackingError if the server does not answer; the votes stay in the journal."""
        total = FlushResult(0, 0)
        while True:
            part, is_last = self._flush_some(threading.Event())
            total = FlushResult(total.mirrored + part.mirrored, total.refused + part.refused)
            if is_last:
                return total

    def start(self) -> None:
        """Start the background thread. It logs an outage, keeps the reason in ``fault`` and tries again."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="votes-mirror", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Mirror a new vote now, without waiting for the next poll."""
        self._wake.set()

    def stop(self, timeout_s: float = 10.0) -> bool:
        """End the thread; pending votes stay in the journal. Return False if the thread still waits for a request."""
        self._stopping.set()
        self._wake.set()
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        wait_s = self._poll_s
        while not self._stopping.is_set():
            try:
                self._flush_some(self._stopping)
                if self.fault is not None:
                    logger.warning("votes of %s: the mirror works again after: %s", self._journal.model, self.fault)
                self.fault, wait_s = None, self._poll_s
            except (TrackingError, JournalError) as error:
                if self.fault is None:
                    logger.warning("votes of %s stay in the journal: %s", self._journal.model, error)
                self.fault, wait_s = str(error), min(self._longest_wait_s, 2 * wait_s)
            self._wake.wait(wait_s)
            self._wake.clear()

    def _flush_some(self, stopping: threading.Event) -> tuple[FlushResult, bool]:
        """Write up to a thousand votes, so that a deletion can take the lock in between; and return whether that was all."""
        mirrored = refused = entries = 0
        server = self._traces.server
        with self._journal.mirroring():
            last, done_to = self._journal.sequence, self._journal.mirrored(server)
            for entry in self._journal.entries(done_to):
                if entries == _MOST_PER_FLUSH or stopping.is_set():
                    return FlushResult(mirrored, refused), stopping.is_set()
                with tracking_errors(server):
                    reason = self._mirror(entry)
                if reason is None:
                    mirrored += 1
                else:
                    refused += 1
                    logger.error(
                        "votes of %s: %s refuses vote %s: %s", self._journal.model, server, entry.sequence, reason
                    )
                    self._journal.set_aside(server, entry.sequence, reason)
                entries += 1
                self._journal.mark_mirrored(server, entry.sequence)
            if self._journal.mirrored(server) < last:  # The last lines are forgotten or damaged.
                self._journal.mark_mirrored(server, last)
        return FlushResult(mirrored, refused), True

    def _mirror(self, entry: Entry) -> str | None:
        """Write one vote. Return None, or the reason why the server will never accept it."""
        from mlflow.exceptions import MlflowException

        if self._experiment_id is None:
            self._experiment_id = self._traces.ensure_experiment()
        try:
            try:
                self._put(entry, self._experiment_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                self._put(entry, self._experiment_id)  # Another host deleted a trace before its feedback was written.
        except MlflowException as error:
            if not is_permanent_refusal(error):
                raise
            if self._traces.experiment() is None:  # It was deleted with its votes: the next flush creates it again.
                self._experiment_id = None
                raise
            return in_short(error)
        return None

    def _put(self, entry: Entry, experiment_id: str) -> None:
        vote = entry.vote
        voter = vote.voter if vote.kind == "person" else None
        ids = self._traces.write(vote.turn, vote.sides, vote.cast_at_ms, experiment_id, voter)
        for trace_id, feedback in zip(ids, feedback_of(entry, self._journal.id, ids), strict=True):
            if vote.revision > 1:
                feedback.overrides = self._overridden(trace_id, vote.vote_id)
            self._traces.tracing.log_assessment(trace_id, feedback)

    def _overridden(self, trace_id: str, vote_id: str) -> str | None:
        """Return the feedback that a change replaces on MLflow's pages. ``read_votes`` uses the revision instead."""
        for feedback in self._traces.tracing.get_trace_info(trace_id).assessments:
            is_same = (feedback.metadata or {}).get(VOTE_ID_METADATA) == vote_id
            if feedback.name == VOTE_FEEDBACK and is_same and feedback.valid is not False:
                return str(feedback.assessment_id)
        return None
