"""Latencies of canary and champion since the canary began, compared window by window on each router."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlflow_finetune_plugin.gate.canary_latency import CanaryLatency
from mlflow_finetune_plugin.gate.policy import LatencyPolicy
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered
from mlflow_finetune_plugin.gate.statistics.failures import FailureTest
from mlflow_finetune_plugin.gate.statistics.latency_quantile import LEAST_EARLIER, LatencyWindow
from mlflow_finetune_plugin.store.latency_counts import LatencyCounts

Stream = tuple[str, float]
"""A router and its start time, because a restarted router counts from 0."""
Latencies = dict[Stream, tuple[LatencyCounts, LatencyCounts]]
"""The latencies of canary and champion, by stream."""

_EMPTY = (LatencyCounts(), LatencyCounts())
_NONE = Answered(0, 0)


@dataclass
class CanaryLatencies:
    """The latencies and their test. ``before`` holds what the routers had counted when the canary began."""

    policy: LatencyPolicy | None
    before: Latencies
    slow: tuple[Answered, Answered] = (_NONE, _NONE)
    slower: FailureTest = field(default_factory=FailureTest)

    def __post_init__(self) -> None:
        self._now: Latencies = dict(self.before)
        self._compared: Latencies = dict(self.before)

    def take(self, reported: Latencies) -> None:
        """Take the newest counts. Counts only grow, so a report without some answers, from a lagging replica, is ignored."""
        for stream, counts in reported.items():
            known = self._now.get(stream, _EMPTY)
            self._now[stream] = (_later(known[0], counts[0]), _later(known[1], counts[1]))

    def compare(self) -> None:
        """Compare the answers since the last comparison on each router on which both sides have some."""
        if self.policy is None or self.policy.over_champion is None:
            return
        for stream, counts in self._now.items():
            start = self._compared.get(stream, _EMPTY)
            window = LatencyWindow(counts[0] - start[0], counts[1] - start[1], start[1])
            slow = window.slow(self.policy.over_champion)
            if slow is not None:
                self.slower = self.slower.after(*slow)
                self.slow = (self.slow[0] + slow[0], self.slow[1] + slow[1])
            if slow is not None or start[1].total < LEAST_EARLIER:
                self._compared[stream] = counts

    @property
    def evidence(self) -> CanaryLatency | None:
        """The latencies for the gate; None where no policy bounds them."""
        if self.policy is None:
            return None
        canary, champion = self.total(0), self.total(1)
        return CanaryLatency(self.policy, canary, champion, *self.slow, self.slower)

    def total(self, side: int) -> LatencyCounts:
        """Return the answers since the canary began: 0 the canary's, 1 the champion's."""
        total = LatencyCounts()
        for stream, counts in self._now.items():
            total += counts[side] - self.before.get(stream, _EMPTY)[side]
        return total


def _later(known: LatencyCounts, reported: LatencyCounts) -> LatencyCounts:
    return reported if reported.includes(known) else known
