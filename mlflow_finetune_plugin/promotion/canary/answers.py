"""Answers of canary and champion since the canary began, as routers report them: counts and latencies."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.gate.evidence import Latency
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered
from mlflow_finetune_plugin.gate.statistics.failures import FailureTest
from mlflow_finetune_plugin.store.served_tags import LEAST_ANSWERS, ServedSummary, served

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SETTLE_S = 0.2
"""A router reports its versions one after the other; after news of one, both are read again."""
_NONE = Answered(0, 0)
Stream = tuple[str, float]
"""A router and its start time, because a restarted router counts from 0."""
Counts = dict[Stream, tuple[Answered, Answered]]
"""The counts of canary and champion, by stream."""


@dataclass
class CanaryAnswers:
    """Counts the answers since this object was created; call ``read`` until the canary ends.

    A router that stops reporting changes nothing; ``silent`` names it.
    """

    client: MlflowClient
    name: str
    candidate: str
    champion: str
    failures: FailureTest = field(default_factory=FailureTest)

    def __post_init__(self) -> None:
        self.begun_s = time.time()
        self._newest: dict[str, dict[str, ServedSummary]] = {}
        self._before: Counts = self._reported()
        self._now: Counts = dict(self._before)
        self._batched: Counts = dict(self._before)
        self._news_s: dict[str, float] = {}

    def read(self) -> bool:
        """Read the routers' reports, and return whether anything is new.

        Raises:
            GateError: A tag is not a summary of answers.
            MlflowException: The registry refuses or does not answer.
        """
        if not self._take(self._reported()):
            return False
        time.sleep(_SETTLE_S)
        self._take(self._reported())
        for stream, counts in self._now.items():
            batch = _since(counts, self._batched.get(stream))
            if all(part.answers for part in batch):
                self.failures = self.failures.after(*batch)
                self._batched[stream] = counts
        return True

    @property
    def canary(self) -> Answered:
        return self._total(0)

    @property
    def champions(self) -> Answered:
        return self._total(1)

    def latency(self) -> tuple[str, Latency] | None:
        """Return the newest latencies and an id of their report; None while there are too few answers.

        The router with the most recent answers of the canary is used.
        """
        candidates, champions = (self._newest.get(version, {}) for version in (self.candidate, self.champion))
        latencies = []
        for router, summary in candidates.items():
            other = champions.get(router)
            if summary.recent is None or other is None or other.recent is None:
                continue
            is_new = min(summary.recent.until, other.recent.until) >= self.begun_s
            if is_new and min(summary.recent.answers, other.recent.answers) >= LEAST_ANSWERS:
                mark = f"{router} {summary.recent.until} {summary.answers}"
                latency = Latency(summary.recent.p95_ms, other.recent.p95_ms)
                latencies.append((summary.recent.answers, mark, latency))
        return max(latencies, key=lambda entry: entry[0])[1:] if latencies else None

    def silent(self, since_s: float) -> list[str]:
        """Return the routers that reported since the canary began, but not since ``since_s`` (epoch s)."""
        return sorted(router for router, news_s in self._news_s.items() if news_s < since_s)

    def _reported(self) -> Counts:
        counts: dict[Stream, list[Answered]] = {}
        for index, version in enumerate((self.candidate, self.champion)):
            tags = self.client.get_model_version(self.name, version).tags
            self._newest[version] = served(tags, f"{self.name}/{version}")
            for router, summary in self._newest[version].items():
                pair = counts.setdefault((router, summary.begun), [_NONE, _NONE])
                pair[index] = Answered(summary.answers, summary.failed)
        return {stream: (pair[0], pair[1]) for stream, pair in counts.items()}

    def _take(self, reported: Counts) -> bool:
        """Return whether there was news. Counts only grow, so an older report, from a lagging replica, is ignored."""
        is_new = False
        for stream, counts in reported.items():
            known = self._now.get(stream, (_NONE, _NONE))
            newest = (_later(known[0], counts[0]), _later(known[1], counts[1]))
            if newest != known:
                self._now[stream], is_new = newest, True
                self._news_s[stream[0]] = time.time()
        return is_new

    def _total(self, index: int) -> Answered:
        total = _NONE
        for stream, counts in self._now.items():
            total += _since(counts, self._before.get(stream))[index]
        return total


def _since(counts: tuple[Answered, Answered], before: tuple[Answered, Answered] | None) -> tuple[Answered, Answered]:
    if before is None:
        return counts
    return counts[0] - before[0], counts[1] - before[1]


def _later(known: Answered, reported: Answered) -> Answered:
    return reported if (reported.answers, reported.failed) > (known.answers, known.failed) else known
