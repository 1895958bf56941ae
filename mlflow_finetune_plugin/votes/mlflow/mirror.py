"""The journal's votes in MLflow, each at least once: after an outage or a crash some come twice, and readers dedupe.

Order of writing: the traces, then the feedback on both, then the mark in the journal. Whatever stops this in between,
the next flush begins at the mark again; the traces are found again by their ids.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from mlflow_finetune_plugin.errors import JournalError, TrackingError, in_short
from mlflow_finetune_plugin.store.clients import is_refusal
from mlflow_finetune_plugin.store.names import VOTE_FEEDBACK, VOTE_ID_METADATA
from mlflow_finetune_plugin.votes.journal.journal import Entry, Journal
from mlflow_finetune_plugin.votes.mlflow.feedback import feedback_of
from mlflow_finetune_plugin.votes.mlflow.traces import VoteTraces, asked

logger = logging.getLogger(__name__)

_NEEDS_SOMEBODY = {"PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"}
_MOST_PER_FLUSH = 1000


@dataclass(frozen=True)
class Flushed:
    """Votes and changes that one flush brought over, and those that the server refuses."""

    mirrored: int
    refused: int


class Mirror:
    """Brings the journal's votes to ``tracking_uri`` (None: where MLflow tracks), in the background or by ``flush``."""

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
        """Up to how many votes and changes MLflow does not have yet."""
        return self._journal.sequence - self._journal.mirrored(self._traces.server)

    def flush(self) -> Flushed:
        """All that is pending, now. Raises TrackingError while the server is away; the votes stay in the journal."""
        total = Flushed(0, 0)
        while True:
            done, is_last = self._flush_some(threading.Event())
            total = Flushed(total.mirrored + done.mirrored, total.refused + done.refused)
            if is_last:
                return total

    def start(self) -> None:
        """Mirrors in a thread of its own until ``stop``; an outage is logged, kept in ``fault`` and waited for."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="votes-mirror", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """A vote was cast: look now."""
        self._wake.set()

    def stop(self, timeout_s: float = 10.0) -> bool:
        """Ends the thread; what it has not brought over stays in the journal. False where it is still in a request."""
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
                    logger.warning("votes of %s: mirrored again after: %s", self._journal.model, self.fault)
                self.fault, wait_s = None, self._poll_s
            except (TrackingError, JournalError) as error:
                if self.fault is None:
                    logger.warning("votes of %s stay in the journal: %s", self._journal.model, error)
                self.fault, wait_s = str(error), min(self._longest_wait_s, 2 * wait_s)
            self._wake.wait(wait_s)
            self._wake.clear()

    def _flush_some(self, stopping: threading.Event) -> tuple[Flushed, bool]:
        """Up to a thousand, so that whoever wants to forget gets a turn; and whether that was all."""
        mirrored = refused = seen = 0
        server = self._traces.server
        with self._journal.mirroring():
            last, done_to = self._journal.sequence, self._journal.mirrored(server)
            for entry in self._journal.entries(done_to):
                if seen == _MOST_PER_FLUSH or stopping.is_set():
                    return Flushed(mirrored, refused), stopping.is_set()
                with asked(server):
                    reason = self._mirror(entry)
                if reason is None:
                    mirrored += 1
                else:
                    refused += 1
                    logger.error("votes of %s: %s refuses %s: %s", self._journal.model, server, entry.sequence, reason)
                    self._journal.set_aside(server, entry.sequence, reason)
                seen += 1
                self._journal.mark_mirrored(server, entry.sequence)
            if self._journal.mirrored(server) < last:  # the last lines are forgotten or damaged
                self._journal.mark_mirrored(server, last)
        return Flushed(mirrored, refused), True

    def _mirror(self, entry: Entry) -> str | None:
        """None when MLflow has the vote on both traces; the reason where it will never take it."""
        from mlflow.exceptions import MlflowException

        if self._experiment_id is None:
            self._experiment_id = self._traces.experiment_made()
        try:
            try:
                self._put(entry, self._experiment_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                self._put(entry, self._experiment_id)  # another host deleted a trace before its feedback came: make it
        except MlflowException as error:
            if not is_refusal(error) or error.error_code in _NEEDS_SOMEBODY:
                raise
            if (
                self._traces.experiment() is None
            ):  # it went, and its votes with it: begin anew, or say that it is deleted
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
        """The feedback that a change replaces in MLflow's pages; who reads by revision needs no such mark."""
        for feedback in self._traces.tracing.get_trace_info(trace_id).assessments:
            is_same = (feedback.metadata or {}).get(VOTE_ID_METADATA) == vote_id
            if feedback.name == VOTE_FEEDBACK and is_same and feedback.valid is not False:
                return str(feedback.assessment_id)
        return None
