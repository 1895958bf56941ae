"""What a router would tell the registry, told without one: counts of answers and failures, as the split has it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow import MlflowClient

from mlflow_finetune_plugin.store.latency_counts import LatencyCounts, bucket_of
from mlflow_finetune_plugin.store.names import SERVED_TAG
from mlflow_finetune_plugin.store.served_tags import LatencySummary, ServedSummary

PER_TELLING = 1000
EVERY_S = 0.15


class ToldRouter:
    """Every ``EVERY_S`` another ``PER_TELLING`` answers; ``fails``: share of them by version, ``p95_ms`` likewise."""

    def __init__(
        self,
        uri: str,
        model: str,
        champion: str,
        candidate: str,
        *,
        fails: dict[str, float] | None = None,
        p95_ms: dict[str, float] | None = None,
    ) -> None:
        self._client, self._model = MlflowClient(uri), model
        self._champion, self._candidate = champion, candidate
        self.fails, self.p95_ms = fails or {}, p95_ms or {}
        self.begun = time.time()
        self.counts = {champion: [0, 0], candidate: [0, 0]}
        self._latencies: dict[str, LatencyCounts] = {}
        self._owed = {champion: 0.0, candidate: 0.0}
        self.canaries: list[str] = []
        self.problems: list[str] = []
        self.is_silent = False
        self._ended = threading.Event()

    def tell(self) -> None:
        model = self._client.get_registered_model(self._model)
        split = model.tags.get("finetune.split", "")
        if "canary=" in split and split != (self.canaries or [""])[-1]:
            self.canaries.append(split)
        share = float(split.rpartition("canary=")[2]) / 100 if "canary=" in split else 0.0
        if share and str(model.aliases.get("canary")) != self._candidate:
            self.problems.append(f"{split}, and canary is {model.aliases.get('canary')}")
        gave = round(share * PER_TELLING)
        for version, answers in ((self._champion, PER_TELLING - gave), (self._candidate, gave)):
            count = self.counts[version]
            count[0] += answers
            self._owed[version] += answers * self.fails.get(version, 0.0)
            count[1] += int(self._owed[version])
            self._owed[version] %= 1
            if answers and not self.is_silent:
                tag = f"{SERVED_TAG}host-1"
                self._client.set_model_version_tag(self._model, version, tag, self._summary(version).to_json())

    def restart(self) -> None:
        self.begun = time.time()
        self.counts = {version: [0, 0] for version in self.counts}
        self._latencies.clear()

    def run(self) -> None:
        while not self._ended.wait(EVERY_S):
            self.tell()

    def end(self) -> None:
        self._ended.set()

    def _summary(self, version: str) -> ServedSummary:
        answers, failed = self.counts[version]
        p95_ms, ended = self.p95_ms.get(version, 100.0), time.time()
        recent = LatencySummary(min(answers - failed, 1000), p95_ms / 2, p95_ms, self.begun, ended)
        counted = self._latencies.get(version, LatencyCounts())
        counts = counted + told_latencies(answers - failed - counted.total, p95_ms)
        self._latencies[version] = counts
        return ServedSummary(self.begun, answers, failed, recent if answers > failed else None, counts)


def told_latencies(answers: int, p95_ms: float) -> LatencyCounts:
    """Counts of answers that only grow with their number: every fifth takes ``p95_ms``, the others half of that."""
    return LatencyCounts.of_buckets({bucket_of(p95_ms / 2): answers - answers // 5, bucket_of(p95_ms): answers // 5})


@contextmanager
def telling(router: ToldRouter) -> Iterator[ToldRouter]:
    thread = threading.Thread(target=router.run)
    thread.start()
    try:
        yield router
    finally:
        router.end()
        thread.join()
    assert router.problems == []
