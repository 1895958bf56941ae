"""Read the standings from MLflow in the background, once for all viewers."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Set
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gradio_app.standings.standings import (
    Standings,
    hide_undecided,
    judged_pairs,
    ordered_pair,
    standings_of,
)
from gradio_app.standings.terms import VoteTerms, read_terms
from mlflow_finetune_plugin.errors import FinetuneError, MoveError
from mlflow_finetune_plugin.promotion.error_rates import VotePairs
from mlflow_finetune_plugin.store.clients import client_for
from mlflow_finetune_plugin.store.names import BASE
from mlflow_finetune_plugin.store.registered_model import read_model, registry_faults
from mlflow_finetune_plugin.votes.mlflow.reading import Reading, read_votes

if TYPE_CHECKING:
    from mlflow import MlflowClient

OpenTurns = Callable[[], Set[str]]
"""Turns whose voter may still change the vote without knowing the names: a count that follows the vote would reveal them."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StandingsSnapshot:
    """The last standings that could be read, when, and why there are no newer ones.

    ``standings`` is None while nothing was read, ``fault`` is None while nothing is wrong, and ``number`` rises with
    every change.
    """

    standings: Standings | None = None
    read_at: datetime | None = None
    fault: str | None = None
    number: int = 0


class StandingsFeed:
    """Gives every viewer standings of the last ``interval_s`` seconds; all viewers together cause one reading.

    A slow reading is repeated less often, so that at most a fifth of the time goes into readings and streaming answers
    are not held up. While MLflow does not answer, viewers keep the last standings and wait no longer than
    ``patience_s`` seconds.
    """

    def __init__(
        self,
        model: str,
        tracking_uri: str | None = None,
        *,
        interval_s: float = 5.0,
        patience_s: float = 4.0,
        open_turns: OpenTurns = frozenset,
        live: bool = False,
    ) -> None:
        self.model = model
        self._reader = StandingsReader(model, tracking_uri, open_turns, live=live)
        self._interval_s, self._patience_s = interval_s, patience_s
        self._lock = threading.Lock()
        self._snapshot = StandingsSnapshot()
        self._reading: Future[None] | None = None
        self._began = self._due = 0.0
        self.readings = 0
        """Number of readings from MLflow."""

    async def latest(self) -> StandingsSnapshot:
        """Return the latest standings. Never raises: the snapshot holds the fault."""
        pending = self._begin_when_due()
        if pending is not None:
            await asyncio.wait({asyncio.wrap_future(pending)}, timeout=self._patience_s)
        with self._lock:
            if self._reading is not None and time.monotonic() - self._began >= self._patience_s:
                fault = f"MLflow did not answer within {self._patience_s:g} seconds"
                return StandingsSnapshot(self._snapshot.standings, self._snapshot.read_at, fault, self._snapshot.number)
            return self._snapshot

    def _begin_when_due(self) -> Future[None] | None:
        with self._lock:
            if self._reading is None and time.monotonic() >= self._due:
                self._reading, self._began = Future(), time.monotonic()
                self.readings += 1
                threading.Thread(target=self._read, args=(self._reading,), name="standings", daemon=True).start()
            return self._reading

    def _read(self, done: Future[None]) -> None:
        standings, fault = None, None
        try:
            standings = self._reader.read(self._snapshot.standings)
        except FinetuneError as error:
            fault = str(error)
        except Exception as error:  # The page shows the fault instead of old standings alone.
            logger.exception("the standings of %s cannot be computed", self.model)
            fault = f"the standings cannot be computed: {type(error).__name__}: {error}"
        with self._lock:
            last = self._snapshot
            if standings is None:
                self._snapshot = StandingsSnapshot(
                    last.standings, last.read_at, fault, last.number + (fault != last.fault)
                )
            else:
                changed = standings is not last.standings or last.fault is not None
                self._snapshot = StandingsSnapshot(standings, datetime.now(UTC), None, last.number + changed)
            took_s = time.monotonic() - self._began
            rest_s = 4 * took_s if fault is None else 0
            self._due = self._began + max(self._interval_s, took_s + rest_s)
            self._reading = None
        done.set_result(None)


class StandingsReader:
    """Reads votes, aliases and terms from MLflow, and counts again only where one of them changed. Blocks.

    The results of undecided pairs are hidden unless ``live``.
    """

    def __init__(
        self, model: str, tracking_uri: str | None = None, open_turns: OpenTurns = frozenset, *, live: bool = False
    ) -> None:
        self._model, self._tracking_uri, self._open_turns, self._live = model, tracking_uri, open_turns, live
        self._terms: dict[str, VoteTerms] = {}
        self._last_read: tuple[Reading, dict[str, str], VotePairs] | None = None

    def read(self, last: Standings | None = None) -> Standings:
        """Return the standings, which are ``last`` itself where nothing changed. Raises TrackingError, MoveError."""
        undecided = self._open_turns()
        reading = read_votes(self._model, self._tracking_uri)
        reading = replace(reading, votes=tuple(vote for vote in reading.votes if vote.vote.turn_id not in undecided))
        aliases, tested = self._registered()
        read_at = None if reading.read_at is None else reading.read_at.replace(minute=0, second=0, microsecond=0)
        hourly = replace(reading, read_at=read_at)  # time alone changes standings only where it closes voters
        if last is not None and self._last_read == (hourly, aliases, tested):
            return last
        candidates = {ordered_pair(pair, aliases)[0] for pair in judged_pairs(reading)} - {BASE}
        for version in candidates - self._terms.keys():
            self._terms[version] = read_terms(self._client(), self._model, version)
        standings = standings_of(reading, aliases, self._terms, tested)
        if not self._live:
            standings = hide_undecided(standings)
        self._last_read = (hourly, aliases, tested)
        return last if last == standings else standings

    def _registered(self) -> tuple[dict[str, str], VotePairs]:
        """Return the model's aliases and the pairs that the gate tested, none before it is registered: votes can still be shown."""
        with registry_faults(self._model):
            try:
                aliases, tags = read_model(self._client(), self._model)
            except MoveError:  # no such model yet
                return {}, VotePairs({})
        return aliases, VotePairs.from_tags(tags)

    def _client(self) -> MlflowClient:
        import mlflow

        return client_for(self._tracking_uri or mlflow.get_tracking_uri())
