"""The ledger of each registered model: stores votes and turns, and deletes what is too old every hour."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass

from gradio_app.prompts.progress import JudgedPrompts
from mlflow_finetune_plugin.errors import FinetuneError
from mlflow_finetune_plugin.votes.deletion import delete_unvoted_older_than
from mlflow_finetune_plugin.votes.journal.journal import Journal
from mlflow_finetune_plugin.votes.journal.shared_links import SharedConversations
from mlflow_finetune_plugin.votes.mlflow.mirror import Mirror
from mlflow_finetune_plugin.votes.mlflow.turn_log import TurnLog

logger = logging.getLogger(__name__)

UPKEEP_S = 3600.0
_END_S = 5.0
_EARLY_S = 5.0


@dataclass(frozen=True)
class Ledger:
    """The journal of a model on this disk, and the threads that copy it to MLflow."""

    journal: Journal
    mirror: Mirror
    turns: TurnLog
    judged: JudgedPrompts
    shared: SharedConversations


class Ledgers:
    """The ledgers of one app.

    Turns without a vote and shared links are deleted after ``keep_traces_days``; None: never.
    """

    def __init__(self, tracking_uri: str | None = None, keep_traces_days: float | None = None) -> None:
        self._tracking_uri, self._keep_traces_days = tracking_uri, keep_traces_days
        self._ledgers: dict[str, Ledger] = {}
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._tasks: set[asyncio.Task[Ledger]] = set()

    def open(self, model: str) -> Ledger:
        """Return the model's ledger; the first call starts its threads.

        Raises JournalError, and TrackingError for a store that MLflow cannot open.
        """
        with self._lock:
            if model not in self._ledgers:
                journal = Journal(model)
                mirror, turns = Mirror(journal, self._tracking_uri), TurnLog(journal, self._tracking_uri)
                ledger = Ledger(journal, mirror, turns, JudgedPrompts(journal), SharedConversations(journal))
                mirror.start()
                turns.start()
                threading.Thread(target=self._clean_up, args=(ledger,), name="cleanup", daemon=True).start()
                self._ledgers[model] = ledger
            return self._ledgers[model]

    def open_early(self, model: str) -> None:
        """Open a ledger at the start of the app, because that takes a second of processor time.

        Waits at most five seconds.
        """
        opening = threading.Thread(target=self._open_early, args=(model,), name="ledger", daemon=True)
        opening.start()
        opening.join(_EARLY_S)

    def _open_early(self, model: str) -> None:
        try:
            self.open(model)
        except (FinetuneError, OSError) as error:
            logger.error("ledger_not_opened fault=%s", error)  # The first vote reports it to its voter.

    def warm(self, model: str) -> None:
        """Open a ledger in the background, so that the first vote does not wait for MLflow."""
        if model not in self._ledgers:
            task = asyncio.create_task(asyncio.to_thread(self.open, model))
            self._tasks.add(task)
            task.add_done_callback(self._warmed)

    def _warmed(self, task: asyncio.Task[Ledger]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("ledger_not_opened fault=%s", task.exception())  # The first vote reports it to its voter.

    def _clean_up(self, ledger: Ledger) -> None:
        while not self._ending.is_set():
            try:
                ledger.shared.purge(self._keep_traces_days)
                if self._keep_traces_days is not None:
                    delete_unvoted_older_than(ledger.journal, self._keep_traces_days, self._tracking_uri)
            except (FinetuneError, OSError) as error:
                logger.warning("cleanup of %s failed and is tried again in an hour: %s", ledger.journal.model, error)
            self._ending.wait(UPKEEP_S)

    async def close(self) -> None:
        """Stop the threads. Votes that MLflow does not accept within five seconds stay in the journal."""
        self._ending.set()
        stops = [stop for ledger in self._ledgers.values() for stop in (ledger.turns.stop, ledger.mirror.stop)]
        await asyncio.gather(*(asyncio.to_thread(stop, _END_S) for stop in stops))
