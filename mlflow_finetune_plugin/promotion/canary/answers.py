"""What routers tell of a canary and of the champion since it began: counts, batches for the test, the newest latencies."""

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
"""A router tells of its versions one after the other; where one has news, both are read again after that."""
_NONE = Answered(0, 0)
Stream = tuple[str, float]
"""A router, and when it began: one that is started again counts from 0."""
Told = dict[Stream, tuple[Answered, Answered]]
"""Of the canary and of the champion."""


@dataclass
class CanaryAnswers:
    """``read`` until the end; what routers had told when it was made does not count.

    A router that stops telling changes nothing, and is in ``silent``.
    """

    client: MlflowClient
    name: str
    candidate: str
    champion: str
    failures: FailureTest = field(default_factory=FailureTest)

    def __post_init__(self) -> None:
        self.begun_s = time.time()
        self._newest: dict[str, dict[str, ServedSummary]] = {}
        self._before: Told = self._ask()
        self._now: Told = dict(self._before)
        self._batched: Told = dict(self._before)
        self._news_s: dict[str, float] = {}

    def read(self) -> bool:
        """Whether anything is new. Raises GateError for a tag that is no summary; what MLflow refuses is passed on."""
        if not self._take(self._ask()):
            return False
        time.sleep(_SETTLE_S)
        self._take(self._ask())
        for stream, told in self._now.items():
            batch = _since(told, self._batched.get(stream))
            if all(side.answers for side in batch):
                self.failures = self.failures.after(*batch)
                self._batched[stream] = told
        return True

    @property
    def canary(self) -> Answered:
        return self._total(0)

    @property
    def champions(self) -> Answered:
        return self._total(1)

    def latency(self) -> tuple[str, Latency] | None:
        """Of the router that told most of late of the canary, with what tells one summary from the next; None: too few yet."""
        own, others = (self._newest.get(version, {}) for version in (self.candidate, self.champion))
        found = []
        for router, told in own.items():
            other = others.get(router)
            if told.recent is None or other is None or other.recent is None:
                continue
            is_new = min(told.recent.until, other.recent.until) >= self.begun_s
            if is_new and min(told.recent.answers, other.recent.answers) >= LEAST_ANSWERS:
                mark = f"{router} {told.recent.until} {told.answers}"
                found.append((told.recent.answers, mark, Latency(told.recent.p95_ms, other.recent.p95_ms)))
        return max(found, key=lambda one: one[0])[1:] if found else None

    def silent(self, since_s: float) -> list[str]:
        """Routers that have told something since the canary began, and nothing since ``since_s`` (epoch s)."""
        return sorted(router for router, news_s in self._news_s.items() if news_s < since_s)

    def _ask(self) -> Told:
        found: dict[Stream, list[Answered]] = {}
        for place, version in enumerate((self.candidate, self.champion)):
            tags = self.client.get_model_version(self.name, version).tags
            self._newest[version] = served(tags, f"{self.name}/{version}")
            for router, told in self._newest[version].items():
                sides = found.setdefault((router, told.begun), [_NONE, _NONE])
                sides[place] = Answered(told.answers, told.failed)
        return {stream: (sides[0], sides[1]) for stream, sides in found.items()}

    def _take(self, found: Told) -> bool:
        """Whether there was news. Counts only grow: a read that is older than the last, of a lagging replica, is passed over."""
        is_new = False
        for stream, told in found.items():
            known = self._now.get(stream, (_NONE, _NONE))
            newest = (_later(known[0], told[0]), _later(known[1], told[1]))
            if newest != known:
                self._now[stream], is_new = newest, True
                self._news_s[stream[0]] = time.time()
        return is_new

    def _total(self, place: int) -> Answered:
        total = _NONE
        for stream, told in self._now.items():
            total += _since(told, self._before.get(stream))[place]
        return total


def _since(told: tuple[Answered, Answered], before: tuple[Answered, Answered] | None) -> tuple[Answered, Answered]:
    if before is None:
        return told
    own, other = (
        Answered(now.answers - then.answers, now.failed - then.failed) for now, then in zip(told, before, strict=True)
    )
    return own, other


def _later(known: Answered, told: Answered) -> Answered:
    return told if (told.answers, told.failed) > (known.answers, known.failed) else known
