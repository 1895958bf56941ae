"""How often tests of latency are wrong, and how many answers they need, in the scenarios of an audit of version 0.1.

    python benchmarks/latency_audit.py [--sims 400]

Latencies are lognormal with the given sigma. Every test runs as in the gate, the canary or the watch, on their public
functions, and any look that decides wrongly counts. "Error before" is what the audit found in version 0.1; its code is gone.
Power: the share of series that decide rightly, and how many answers that takes in half and in nine tenths of the series.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mlflow_finetune_plugin.gate.policy import LatencyPolicy
from mlflow_finetune_plugin.gate.statistics.detectors.comparison import ComparisonDetector
from mlflow_finetune_plugin.gate.statistics.detectors.failures import FailureDetector
from mlflow_finetune_plugin.gate.statistics.failure_rate import e_above
from mlflow_finetune_plugin.gate.statistics.failures import FailureTest
from mlflow_finetune_plugin.gate.statistics.latency_quantile import (
    SLOW_SHARE,
    LatencyWindow,
    over_budget,
    p95_interval,
    p95_ratio,
)
from mlflow_finetune_plugin.store.latency_counts import EDGES_MS, LatencyCounts

Rng = np.random.Generator
Trial = Callable[[Rng], int | None]
"""Returns the answers, or checks, after which a series decided; None where it did not."""

ALPHA = LatencyPolicy(p95_ms=1).alpha
BOUNDARY = 1 / ALPHA
MEDIAN_MS = 300.0
Z95 = 1.6448536
MOST = 20_000


def drawn(rng: Rng, sigma: float, answers: int, times: float = 1.0) -> LatencyCounts:
    """Draw lognormal latencies, ``times`` as long."""
    buckets = np.searchsorted(EDGES_MS, times * MEDIAN_MS * rng.lognormal(0, sigma, answers), side="right") - 1
    return LatencyCounts.of_buckets(Counter(buckets.tolist()))


def looks(first: int = 40, most: int = MOST) -> Iterator[tuple[int, int]]:
    """Yield how many answers there are at each look, a tenth more each time, and how many of them are new."""
    before, answers = 0, first
    while answers <= most:
        yield answers, answers - before
        before, answers = answers, max(math.ceil(1.1 * answers), answers + 1)


def gate(sigma: float, times: float, over: float, outcome: str, *, answers: int | None = None) -> Trial:
    """Compare with the champion once, with ``answers`` of each, or at every look."""

    def trial(rng: Rng) -> int | None:
        candidate = champion = LatencyCounts()
        for total, new in [(answers, answers)] if answers is not None else looks():
            candidate, champion = candidate + drawn(rng, sigma, new, times), champion + drawn(rng, sigma, new)
            ratio = p95_ratio(candidate, champion, alpha=ALPHA)
            if (ratio.high <= over) if outcome == "pass" else (ratio.low > over):
                return total
        return None

    return trial


def gate_budget(sigma: float, share: float, outcome: str, *, most: int = MOST) -> Trial:
    """Compare with a budget at every look; the true percentile is ``share`` of the budget."""
    budget_ms = MEDIAN_MS * math.exp(Z95 * sigma) / share

    def trial(rng: Rng) -> int | None:
        counts = LatencyCounts()
        for total, new in looks(most=most):
            counts += drawn(rng, sigma, new)
            interval = p95_interval(counts, alpha=ALPHA)
            if (interval.high <= budget_ms) if outcome == "pass" else (interval.low > budget_ms):
                return total
        return None

    return trial


def canary(sigma: float, share: float, times: float, *, over: float = 1.2, checks: int = 30) -> Trial:
    """100 requests per check, of which the canary answers ``share``; load changes from check to check, for both."""

    def trial(rng: Rng) -> int | None:
        test, earlier, answers = FailureTest(), drawn(rng, sigma, 500), 0
        for _ in range(checks):
            load, size = rng.lognormal(0, 0.1), int(rng.binomial(100, share))
            window = drawn(rng, sigma, size, load * times), drawn(rng, sigma, 100 - size, load)
            slow, answers = LatencyWindow(*window, earlier).slow(over), answers + size
            earlier += window[1]
            test = test.after(*slow) if slow is not None else test
            if test.e_worse >= BOUNDARY:
                return answers
        return None

    return trial


def canary_budget(sigma: float, share: float, excess: float, *, checks: int = 30) -> Trial:
    """The canary's true percentile is ``excess`` times the budget."""
    budget_ms = MEDIAN_MS * math.exp(Z95 * sigma)

    def trial(rng: Rng) -> int | None:
        counts = LatencyCounts()
        for _ in range(checks):
            counts += drawn(rng, sigma, int(rng.binomial(100, share)), excess)
            if e_above(over_budget(counts, budget_ms), SLOW_SHARE) >= BOUNDARY:
                return counts.total
        return None

    return trial


def watch(sigma: float, each: tuple[int, int], times: float, *, over: float = 1.2, alike: int = 0, checks: int = 48):
    """Each check has ``each`` answers of champion and previous version; after ``alike`` checks the champion is slower."""

    def trial(rng: Rng) -> int | None:
        test, earlier = ComparisonDetector(), drawn(rng, sigma, each[1])
        for check in range(1, alike + checks + 1):
            load = rng.lognormal(0, 0.1)
            champion = drawn(rng, sigma, each[0], load * (times if check > alike else 1.0))
            previous = drawn(rng, sigma, each[1], load)
            slow = LatencyWindow(champion, previous, earlier).slow(over)
            earlier += previous
            test = test.after([slow] if slow is not None else [])
            if test.evidence >= BOUNDARY:
                return max(check - alike, 0) * each[0]
        return None

    return trial


def watch_budget(sigma: float, each: int, excess: float, *, alike: int = 0, checks: int = 48) -> Trial:
    """Each check has ``each`` answers; after ``alike`` checks the percentile is ``excess`` times the budget."""
    budget_ms = MEDIAN_MS * math.exp(Z95 * sigma)

    def trial(rng: Rng) -> int | None:
        test = FailureDetector(SLOW_SHARE)
        for check in range(1, alike + checks + 1):
            counts = drawn(rng, sigma, each, excess if check > alike else 0.8)
            test = test.after(over_budget(counts, budget_ms))
            if test.evidence >= BOUNDARY:
                return max(check - alike, 0) * each
        return None

    return trial


@dataclass(frozen=True)
class Scenario:
    """A trial. ``before`` is the audit's figure for version 0.1 in percent, or a dash where it has none."""

    name: str
    trial: Trial
    before: str = "-"


ERRORS = [
    Scenario("gate: equal, sigma .5, 30 answers, rejected at 1.2", gate(0.5, 1, 1.2, "reject", answers=30), "23"),
    Scenario("gate: equal, sigma 1, 100 answers, rejected at 1.2", gate(1, 1, 1.2, "reject", answers=100), "27"),
    Scenario("gate: 1.5 times slower, sigma .5, 30 answers, passes 1.2", gate(0.5, 1.5, 1.2, "pass", answers=30), "20"),
    Scenario("gate: 1.5 times slower, sigma 1, 100 answers, passes 1.2", gate(1, 1.5, 1.2, "pass", answers=100), "23"),
    Scenario("gate: 1.2 times slower, sigma .5, any look, passes 1.2", gate(0.5, 1.2, 1.2, "pass")),
    Scenario("gate: 1.2 times slower, sigma .5, any look, rejected at 1.2", gate(0.5, 1.2, 1.2, "reject")),
    Scenario("gate: p95 at the budget, sigma .5, any look, passes", gate_budget(0.5, 1, "pass")),
    Scenario("gate: p95 at the budget, sigma .5, any look, rejected", gate_budget(0.5, 1, "reject")),
    *[
        Scenario(f"canary: equal, sigma {sigma:g}, {100 * share:g} % of 100 per check, 30 checks", trial, "15 to 40")
        for sigma in (0.5, 1.0)
        for share in (0.1, 0.5)
        for trial in (canary(sigma, share, 1),)
    ],
    Scenario("canary: 1.2 times slower, sigma .5, 50 % of 100 per check", canary(0.5, 0.5, 1.2)),
    Scenario("canary: p95 at the budget, sigma .5, 50 % of 100 per check", canary_budget(0.5, 0.5, 1)),
    Scenario(
        "watch: equal, sigma .5, a previous version that no longer answers, 48 checks",
        watch(0.5, (200, 0), 1),
        "32 to 52",
    ),
    Scenario("watch: equal, sigma .5, 200 and 20 answers per check, 48 checks", watch(0.5, (200, 20), 1)),
    Scenario("watch: 1.2 times slower, sigma .5, 200 and 20 per check, 48 checks", watch(0.5, (200, 20), 1.2)),
    Scenario("watch: p95 at the budget, sigma .5, 200 per check, 48 checks", watch_budget(0.5, 200, 1)),
]
POWERS = [
    *[
        Scenario(f"gate: equal, sigma {sigma:g}, passes {over:g}", gate(sigma, 1, over, "pass"))
        for over in (1.2, 1.5)
        for sigma in (0.1, 0.5, 1.0)
    ],
    *[
        Scenario(f"gate: {times:g} times slower, sigma {sigma:g}, rejected at 1.2", gate(sigma, times, 1.2, "reject"))
        for times in (1.5, 2.0)
        for sigma in (0.5, 1.0)
    ],
    *[
        Scenario(f"gate: budget twice the p95, sigma {sigma:g}, passes", gate_budget(sigma, 0.5, "pass"))
        for sigma in (0.5, 1.0)
    ],
    *[
        Scenario(f"gate: budget half the p95, sigma {sigma:g}, rejected", gate_budget(sigma, 2, "reject"))
        for sigma in (0.5, 1.0)
    ],
    *[
        Scenario(f"canary: {times:g} times slower, sigma .5, {100 * share:g} %, back in 30 checks", trial)
        for times in (1.5, 2.0)
        for share in (0.1, 0.5)
        for trial in (canary(0.5, share, times),)
    ],
    Scenario("canary: p95 twice the budget, sigma .5, 10 %, back in 30 checks", canary_budget(0.5, 0.1, 2)),
    *[
        Scenario(
            f"watch: {times:g} times slower after 48 equal checks, sigma .5, 200 and 20 per check",
            watch(0.5, (200, 20), times, alike=48),
        )
        for times in (1.5, 2.0)
    ],
    Scenario(
        "watch: from .8 to 1.5 times the budget after 48 checks, sigma .5, 200 per check",
        watch_budget(0.5, 200, 1.5, alike=48),
    ),
]


def decided(scenarios: list[Scenario], sims: int, seed: int) -> Iterator[tuple[Scenario, list[int]]]:
    for number, scenario in enumerate(scenarios):
        rng, start = np.random.default_rng([seed, number]), time.monotonic()
        results = [scenario.trial(rng) for _ in range(sims)]
        print(f"{scenario.name} ({time.monotonic() - start:.0f} s)", file=sys.stderr, flush=True)
        yield scenario, sorted(result for result in results if result is not None)


def at_share(answers: list[int], sims: int, share: float) -> str:
    """Return after how many answers this share of all series has decided."""
    index = math.ceil(share * sims) - 1
    return f"{answers[index]:,}" if index < len(answers) else "-"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sims", type=int, default=400)
    sims = parser.parse_args().sims
    limit = ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / sims)
    is_above = False
    print("| scenario | nominal error, % | error before | error now | simulations |\n|---|---|---|---|---|")
    for scenario, results in decided(ERRORS, sims, 2026):
        error = len(results) / sims
        is_above |= error > limit
        mark = " **above**" if error > limit else ""
        print(
            f"| {scenario.name} | {100 * ALPHA:g} | {scenario.before} | {100 * error:.1f}{mark} | {sims:,} |",
            flush=True,
        )
    print("\n| scenario | decided, % | answers in half of the series | in nine tenths |\n|---|---|---|---|")
    for scenario, results in decided(POWERS, sims, 2027):
        needed = " | ".join(at_share(results, sims, share) for share in (0.5, 0.9))
        print(f"| {scenario.name} | {100 * len(results) / sims:.1f} | {needed} |", flush=True)
    return int(is_above)


if __name__ == "__main__":
    sys.exit(main())
