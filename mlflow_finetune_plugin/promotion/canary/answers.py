"""Answers of canary and champion since the canary began, as routers report them: counts and latencies."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.gate.policy import LatencyPolicy
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered
from mlflow_finetune_plugin.gate.statistics.failures import FailureTest
from mlflow_finetune_plugin.promotion.canary.latencies import CanaryLatencies, Latencies, Stream
from mlflow_finetune_plugin.store.latency_counts import LatencyCounts
from mlflow_finetune_plugin.store.served_tags import ServedSummary, served

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SETTLE_S = 0.2
"""A router reports its versions one after the other; after news of one, both are read again."""
_NONE = Answered(0, 0)
Pair = tuple[Answered, Answered]
Counts = dict[Stream, Pair]
"""The counts of canary and champion, by stream."""
Summaries = tuple[dict[str, ServedSummary], dict[str, ServedSummary]]
"""The routers' reports on canary and champion."""


@dataclass
class CanaryAnswers:
    """Counts the answers since this object was created; call ``read`` until the canary ends.

    A router that stops reporting changes nothing; ``silent`` names it.
    """

    client: MlflowClient
    name: str
    candidate: str
    champion: str
    latency_policy: LatencyPolicy | None = None
    failures: FailureTest = field(default_factory=FailureTest)

    def __post_init__(self) -> None:
        summaries = self._summaries()
        self.latencies = CanaryLatencies(self.latency_policy, _latencies(summaries))
        self._before: Counts = _counts(summaries)
        self._now: Counts = dict(self._before)
        self._first_before: Counts = _first_counts(summaries)
        self._first_now: Counts = dict(self._first_before)
        self._batched: Counts = dict(self._first_before)
        self._left_out_before = _left_out(summaries)
        self._left_out = dict(self._left_out_before)
        self._news_s: dict[str, float] = {}

    def read(self) -> bool:
        """Read the routers' reports, and return whether anything is new.

        Raises:
            GateError: A tag is not a summary of answers.
            MlflowException: The registry refuses or does not answer.
        """
        if not self._take(self._summaries()):
            return False
        time.sleep(_SETTLE_S)
        self._take(self._summaries())
        self.latencies.compare()
        for stream, counts in self._first_now.items():
            batch = _since(counts, self._batched.get(stream))
            if all(part.answers for part in batch):
                self.failures = self.failures.after(*batch)
                self._batched[stream] = counts
        return True

    @property
    def canary(self) -> Answered:
        return _total(self._now, self._before)[0]

    @property
    def left_out(self) -> int:
        """The canary's further failures, which the routers do not count because one API key had them."""
        return sum(count - self._left_out_before.get(stream, 0) for stream, count in self._left_out.items())

    @property
    def champions(self) -> Answered:
        return _total(self._now, self._before)[1]

    @property
    def first_answers(self) -> Pair:
        """The answers of canary and champion that count each user once; all answers where a router does not report these."""
        return _total(self._first_now, self._first_before)

    def silent(self, since_s: float) -> list[str]:
        """Return the routers that reported since the canary began, but not since ``since_s`` (epoch s)."""
        return sorted(router for router, news_s in self._news_s.items() if news_s < since_s)

    def _summaries(self) -> Summaries:
        """Return what the routers report of canary and champion."""
        canary, champion = (
            served(self.client.get_model_version(self.name, version).tags, f"{self.name}/{version}")
            for version in (self.candidate, self.champion)
        )
        return canary, champion

    def _take(self, summaries: Summaries) -> bool:
        """Return whether there was news. Counts only grow, so an older report, from a lagging replica, is ignored."""
        is_new = False
        for stream, counts in _counts(summaries).items():
            known = self._now.get(stream, (_NONE, _NONE))
            newest = (_later(known[0], counts[0]), _later(known[1], counts[1]))
            if newest != known:
                self._now[stream], is_new = newest, True
                self._news_s[stream[0]] = time.time()
        for stream, counts in _first_counts(summaries).items():
            known = self._first_now.get(stream, (_NONE, _NONE))
            self._first_now[stream] = (_later(known[0], counts[0]), _later(known[1], counts[1]))
        for stream, count in _left_out(summaries).items():
            if count > self._left_out.get(stream, 0):
                self._left_out[stream], is_new = count, True
        self.latencies.take(_latencies(summaries))
        return is_new


def _total(now: Counts, before: Counts) -> Pair:
    parts = [_since(counts, before.get(stream)) for stream, counts in now.items()]
    return sum((part[0] for part in parts), _NONE), sum((part[1] for part in parts), _NONE)


def _first_counts(summaries: Summaries) -> Counts:
    """Return the counts of each user's first answer. An older router reports none, so all of its answers count."""
    counts = _counts(summaries)
    for index, of_version in enumerate(summaries):
        for router, summary in of_version.items():
            if summary.first_answers is not None and summary.first_failed is not None:
                stream = (router, summary.begun)
                pair = list(counts[stream])
                pair[index] = Answered(summary.first_answers, summary.first_failed)
                counts[stream] = (pair[0], pair[1])
    return counts


def _counts(summaries: Summaries) -> Counts:
    counts: dict[Stream, list[Answered]] = {}
    for index, of_version in enumerate(summaries):
        for router, summary in of_version.items():
            pair = counts.setdefault((router, summary.begun), [_NONE, _NONE])
            pair[index] = Answered(summary.answers, summary.failed)
    return {stream: (pair[0], pair[1]) for stream, pair in counts.items()}


def _left_out(summaries: Summaries) -> dict[Stream, int]:
    return {(router, summary.begun): summary.left_out for router, summary in summaries[0].items()}


def _latencies(summaries: Summaries) -> Latencies:
    latencies: dict[Stream, list[LatencyCounts]] = {}
    for index, of_version in enumerate(summaries):
        for router, summary in of_version.items():
            if summary.latencies is not None:
                pair = latencies.setdefault((router, summary.begun), [LatencyCounts(), LatencyCounts()])
                pair[index] = summary.latencies
    return {stream: (pair[0], pair[1]) for stream, pair in latencies.items()}


def _since(counts: Pair, before: Pair | None) -> Pair:
    if before is None:
        return counts
    return counts[0] - before[0], counts[1] - before[1]


def _later(known: Answered, reported: Answered) -> Answered:
    return reported if (reported.answers, reported.failed) > (known.answers, known.failed) else known
