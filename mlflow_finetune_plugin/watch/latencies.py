"""The latencies of all checks of a model so far, and the tests of them.

A window is what a router counted between two checks, so windows are disjoint. Two versions are compared in the windows in
which both answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlflow_finetune_plugin.gate.policy import LatencyPolicy
from mlflow_finetune_plugin.gate.statistics.detectors.comparison import ComparisonDetector
from mlflow_finetune_plugin.gate.statistics.detectors.failures import FailureDetector
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered
from mlflow_finetune_plugin.gate.statistics.latency_quantile import SLOW_SHARE, LatencyWindow, over_budget
from mlflow_finetune_plugin.store.latency_counts import LatencyCounts
from mlflow_finetune_plugin.store.served_tags import ServedSummary

Reports = Mapping[str, ServedSummary]
Routers = Mapping[str, tuple[float, LatencyCounts]]
"""Router -> its start time (epoch s) and the latencies that it has counted since."""

_NONE = LatencyCounts()


@dataclass(frozen=True)
class WatchedLatencies:
    """The newest counts by version and router, and the tests.

    Args:
        counts: Version -> its routers.
        versions: The versions of the last check.
        over_budget: "version budget" -> the test of the answers that took longer than the budget.
        compared: "version over previous times" -> the test whether the version is more than so many times as slow.
    """

    counts: Mapping[str, Routers] = field(default_factory=dict)
    versions: tuple[str, ...] = ()
    over_budget: Mapping[str, FailureDetector] = field(default_factory=dict)
    compared: Mapping[str, ComparisonDetector] = field(default_factory=dict)

    def after(
        self, policy: LatencyPolicy, champion: tuple[str, Reports], previous: tuple[str, Reports] | None
    ) -> WatchedLatencies:
        """Return the latencies with the newest reports, each a version and what its routers report.

        What routers counted before the first check counts for the budget. Two versions are compared only in windows
        whose beginning is a check, because only these are of the same time.
        """
        sides = [champion, *([previous] if previous is not None else [])]
        begun: dict[str, float] = {}
        for _, reports in sides:
            for router, report in reports.items():
                begun[router] = max(report.begun, begun.get(router, 0.0))
        counts, budgets = dict(self.counts), dict(self.over_budget)
        windows: list[dict[str, LatencyCounts]] = []
        for version, reports in sides:
            newest: dict[str, tuple[float, LatencyCounts]] = {}
            for router, begun_s in begun.items():
                known = _newest(begun_s, reports.get(router), self._of(version, router))
                if known is not None:
                    newest[router] = known
            windows.append({router: _since(known, self._of(version, router)) for router, known in newest.items()})
            counts[version] = {**self.counts.get(version, {}), **newest}
            if policy.p95_ms is not None:
                key, batch = _budget_key(version, policy.p95_ms), sum(windows[-1].values(), _NONE)
                detector = budgets.get(key, FailureDetector(SLOW_SHARE))
                budgets[key] = detector.after(over_budget(batch, policy.p95_ms))
        compared = dict(self.compared)
        if previous is not None and policy.over_champion is not None:
            pair = (champion[0], previous[0])
            detector_of_pair = self.comparison(*pair, policy.over_champion)
            strata = self._slow(windows, *pair, policy.over_champion)
            compared[_compared_key(*pair, policy.over_champion)] = detector_of_pair.after(strata)
        return WatchedLatencies(counts, tuple(version for version, _ in sides), budgets, compared)

    def total(self, version: str) -> LatencyCounts:
        """Return the version's answers that its routers have counted since their start."""
        return sum((counts for _, counts in self.counts.get(version, {}).values()), _NONE)

    def budget_test(self, version: str, budget_ms: float) -> FailureDetector:
        return self.over_budget.get(_budget_key(version, budget_ms), FailureDetector(SLOW_SHARE))

    def comparison(self, champion: str, previous: str, times: float) -> ComparisonDetector:
        return self.compared.get(_compared_key(champion, previous, times), ComparisonDetector())

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> WatchedLatencies:
        """Read what ``dataclasses.asdict`` made of it. Raises ValueError, KeyError or TypeError for anything else."""
        counts = {
            str(version): {
                str(name): (float(begun), LatencyCounts(counted["first"], tuple(counted["counts"])))
                for name, (begun, counted) in routers.items()
            }
            for version, routers in content["counts"].items()
        }
        budgets = {str(key): read_detector(detector) for key, detector in content["over_budget"].items()}
        compared = {
            str(key): ComparisonDetector(
                batches=int(test["batches"]),
                log_capitals=tuple(map(float, test["log_capitals"])),
                candidate=Answered(**test["candidate"]),
                champion=Answered(**test["champion"]),
            )
            for key, test in content["compared"].items()
        }
        return cls(counts, tuple(map(str, content["versions"])), budgets, compared)

    def _of(self, version: str, router: str) -> tuple[float, LatencyCounts] | None:
        return self.counts.get(version, {}).get(router)

    def _slow(
        self, windows: list[dict[str, LatencyCounts]], champion: str, previous: str, times: float
    ) -> list[tuple[Answered, Answered]]:
        """Return the answers of both versions in the window of each router, with the slow ones as failed."""
        strata = []
        for router in windows[0].keys() & windows[1].keys():
            earlier, before = self._of(previous, router), self._of(champion, router)
            is_since_check = champion in self.versions and previous in self.versions
            if earlier is not None and before is not None and is_since_check:
                strata.append(LatencyWindow(windows[0][router], windows[1][router], earlier[1]).slow(times))
        return [slow for slow in strata if slow is not None]


def read_detector(content: Mapping[str, Any]) -> FailureDetector:
    """Read a detector from JSON. Raises ValueError, KeyError or TypeError for anything else."""
    return FailureDetector(
        at_most=float(content["at_most"]),
        batches=int(content["batches"]),
        log_capitals=tuple(map(float, content["log_capitals"])),
        total=Answered(**content["total"]),
        recent=Answered(**content["recent"]),
    )


def _newest(
    begun: float, report: ServedSummary | None, known: tuple[float, LatencyCounts] | None
) -> tuple[float, LatencyCounts] | None:
    """Return the newest counts of a version on a router that reported it or the other version.

    A version that the router has not reported yet has no answers there. A report without some answers of the last one
    comes from a replica of the registry that lags behind, or was edited, and is ignored. None where an older router wrote the report.
    """
    if report is None:
        return known if known is not None and known[0] == begun else (begun, _NONE)
    if report.latencies is None:
        return None
    is_behind = known is not None and known[0] == report.begun and not report.latencies.includes(known[1])
    return known if is_behind else (report.begun, report.latencies)


def _since(newest: tuple[float, LatencyCounts], known: tuple[float, LatencyCounts] | None) -> LatencyCounts:
    return newest[1] - known[1] if known is not None and known[0] == newest[0] else newest[1]


def _budget_key(version: str, budget_ms: float) -> str:
    return f"{version} {budget_ms:g} ms"


def _compared_key(champion: str, previous: str, times: float) -> str:
    return f"{champion} over {previous} {times:g}"
