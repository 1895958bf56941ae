"""The counts of all checks of a model so far.

The newest check's run holds them, and the next check continues from there.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import in_short
from mlflow_finetune_plugin.gate.statistics.detectors.failures import FailureDetector
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered
from mlflow_finetune_plugin.store.names import WATCH_OUTCOME_TAG
from mlflow_finetune_plugin.store.served_tags import ServedSummary
from mlflow_finetune_plugin.watch.latencies import WatchedLatencies, read_detector

if TYPE_CHECKING:
    from mlflow import MlflowClient

FILE = "state.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedCounts:
    """A version's answers.

    Args:
        routers: Router -> its start time (epoch s), answers and failures in its last report.
        ended: Answers and failures that routers counted before they were restarted.
    """

    routers: Mapping[str, tuple[float, int, int]] = field(default_factory=dict)
    ended: tuple[int, int] = (0, 0)

    def updated(self, reported: Mapping[str, ServedSummary]) -> ServedCounts:
        """Return the counts with the routers' newest reports.

        Counts from before a restart stay included. A report with fewer answers than the last one comes from a replica of
        the registry that lags behind, and is ignored.
        """
        over = [
            known for name, known in self.routers.items() if name not in reported or reported[name].begun != known[0]
        ]
        answers, failed = self.ended
        ended = (answers + sum(known[1] for known in over), failed + sum(known[2] for known in over))
        routers = {}
        for name, report in reported.items():
            newest, known = (report.begun, report.answers, report.failed), self.routers.get(name)
            is_behind = known is not None and known[0] == report.begun and known[1:] > newest[1:]
            routers[name] = known if is_behind and known is not None else newest
        return ServedCounts(routers, ended)

    @property
    def failures(self) -> Answered:
        answers, failed = self.ended
        routers = self.routers.values()
        return Answered(answers + sum(router[1] for router in routers), failed + sum(router[2] for router in routers))


@dataclass(frozen=True)
class WatchState:
    """What the next check continues from, by version.

    Args:
        served: Its answers.
        rows: The digests of the sets of new rows that it answered as champion, in order.
        detectors: The test of its failed answers.
        latencies: The latencies of its answers.
    """

    served: Mapping[str, ServedCounts] = field(default_factory=dict)
    rows: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    detectors: Mapping[str, FailureDetector] = field(default_factory=dict)
    latencies: WatchedLatencies = field(default_factory=WatchedLatencies)

    def with_served(self, version: str, reported: Mapping[str, ServedSummary], at_most: float) -> WatchState:
        """Return the state with the newest reports on a version.

        The answers since the last check are one batch of the test. Another bound ``at_most`` than that of the last check
        starts a new test, with all answers as its first batch.
        """
        before = self.served.get(version, ServedCounts())
        counts = before.updated(reported)
        detector = self.detectors.get(version)
        if detector is None or detector.at_most != at_most:
            detector = FailureDetector(at_most).after(counts.failures)
        else:
            detector = detector.after(counts.failures - before.failures)
        return replace(self, served={**self.served, version: counts}, detectors={**self.detectors, version: detector})

    def with_rows(self, version: str, digest: str) -> WatchState:
        """Return the state with one more set of new rows, unless it is known."""
        known = self.rows.get(version, ())
        return self if digest in known else replace(self, rows={**self.rows, version: (*known, digest)})

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> WatchState:
        """Read what ``to_json`` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        content = json.loads(text)
        served = {
            str(version): ServedCounts(
                {str(name): (float(begun), int(n), int(k)) for name, (begun, n, k) in counts["routers"].items()},
                (int(counts["ended"][0]), int(counts["ended"][1])),
            )
            for version, counts in content["served"].items()
        }
        rows = {str(version): tuple(map(str, digests)) for version, digests in content["rows"].items()}
        detectors = {  # states of version 0.1 have none
            str(version): read_detector(detector) for version, detector in content.get("detectors", {}).items()
        }
        latencies = content.get("latencies")  # earlier states have none
        return cls(
            served, rows, detectors, WatchedLatencies() if latencies is None else WatchedLatencies.from_json(latencies)
        )


def last_state(client: MlflowClient, experiment_id: str, notes: list[str]) -> WatchState:
    """Return the state in the newest check's run.

    Where it cannot be read, ``notes`` say so and the counts start again.
    """
    from mlflow.exceptions import MlflowException

    checks = client.search_runs(
        [experiment_id], f"tags.`{WATCH_OUTCOME_TAG}` LIKE '%'", order_by=["attributes.start_time DESC"], max_results=1
    )
    if not checks:
        return WatchState()
    run_id = checks[0].info.run_id
    try:
        with tempfile.TemporaryDirectory() as scratch:
            return WatchState.from_json(Path(client.download_artifacts(run_id, FILE, scratch)).read_text("utf-8"))
    except (MlflowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        notes.append(
            f"the counts of the last check, run {run_id}, cannot be read, so they start again: {in_short(error)}"
        )
        return WatchState()
