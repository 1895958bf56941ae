"""What looks at a model have counted so far, so that each can go on where the last one ended: kept in the newest look's run."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import in_short
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered
from mlflow_finetune_plugin.store.names import WATCH_OUTCOME_TAG
from mlflow_finetune_plugin.store.served_tags import ServedSummary

if TYPE_CHECKING:
    from mlflow import MlflowClient

FILE = "state.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """A version's answers. ``routers``: of each router its begin (epoch s), answers and failures, as it last told;
    ``ended``: answers and failures of those that have begun anew since.
    """

    routers: Mapping[str, tuple[float, int, int]] = field(default_factory=dict)
    ended: tuple[int, int] = (0, 0)

    def now(self, told: Mapping[str, ServedSummary]) -> Served:
        """With what routers tell now. What one of them had counted before its restart is kept, so nothing starts over."""
        over = [known for name, known in self.routers.items() if name not in told or told[name].begun != known[0]]
        answers, failed = self.ended
        ended = (answers + sum(known[1] for known in over), failed + sum(known[2] for known in over))
        return Served({name: (one.begun, one.answers, one.failed) for name, one in told.items()}, ended)

    @property
    def failures(self) -> Answered:
        answers, failed = self.ended
        routers = self.routers.values()
        return Answered(answers + sum(one[1] for one in routers), failed + sum(one[2] for one in routers))


@dataclass(frozen=True)
class WatchState:
    """By version: its answers, and the digests of the sets of new rows that it was asked as champion, the first first."""

    served: Mapping[str, Served] = field(default_factory=dict)
    rows: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def with_served(self, version: str, told: Mapping[str, ServedSummary]) -> WatchState:
        found = self.served.get(version, Served()).now(told)
        return replace(self, served={**self.served, version: found})

    def with_rows(self, version: str, digest: str) -> WatchState:
        known = self.rows.get(version, ())
        return self if digest in known else replace(self, rows={**self.rows, version: (*known, digest)})

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> WatchState:
        """Raises ValueError, KeyError or TypeError for what ``to_json`` has not written."""
        told = json.loads(text)
        served = {
            str(version): Served(
                {str(name): (float(begun), int(n), int(k)) for name, (begun, n, k) in one["routers"].items()},
                (int(one["ended"][0]), int(one["ended"][1])),
            )
            for version, one in told["served"].items()
        }
        return cls(served, {str(version): tuple(map(str, digests)) for version, digests in told["rows"].items()})


def last_state(client: MlflowClient, experiment_id: str, notes: list[str]) -> WatchState:
    """Of the newest look that kept one; where it cannot be read, an empty one, which ``notes`` then say."""
    from mlflow.exceptions import MlflowException

    looks = client.search_runs(
        [experiment_id], f"tags.`{WATCH_OUTCOME_TAG}` LIKE '%'", order_by=["attributes.start_time DESC"], max_results=1
    )
    if not looks:
        return WatchState()
    run_id = looks[0].info.run_id
    try:
        with tempfile.TemporaryDirectory() as scratch:
            return WatchState.from_json(Path(client.download_artifacts(run_id, FILE, scratch)).read_text("utf-8"))
    except (MlflowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        notes.append(
            f"the counts of the look before, run {run_id}, cannot be read, so they start over: {in_short(error)}"
        )
        return WatchState()
