"""How often a canary that is no worse is rolled back, and how soon one that fails more often is noticed.

    python benchmarks/gate_canary.py [--sims 2000]

Each figure comes from so many simulated canaries, looked at after every batch of answers. Compared with the unconditional
two-sample e-process of Turner, Ly and Gruenwald 2024 (JSPI 230, 106116; plug-in estimates from a Beta(.18, .18) start, as
they recommend), and with Fisher's exact p-value looked at as often.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import numpy as np
from scipy.stats import hypergeom

from mlflow_finetune_plugin.gate.canary import CanaryLook, judge_canary
from mlflow_finetune_plugin.gate.canary_policy import CanaryPolicy
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered, e_above, failure_rate
from mlflow_finetune_plugin.gate.statistics.failures import FailureTest

POLICY = CanaryPolicy((5, 25, 50))
BOUNDARY = POLICY.boundary
Batch = tuple[Answered, Answered]
Stops = Callable[[Iterator[Batch]], int | None]
"""After how many of the canary's answers it goes back; None: never."""


def batches(
    rng: np.random.Generator, canary: float, champion: float, share: float, size: int, count: int, outage: float = 0.0
) -> Iterator[Batch]:
    """``size`` answers a batch. ``outage``: chance that a batch falls into one, where nine in ten fail on both sides."""
    canary_sizes = rng.binomial(size, share, size=count)
    is_out = rng.random(count) < outage
    for n, out in zip(canary_sizes.tolist(), is_out.tolist(), strict=True):
        rates = (0.9, 0.9) if out else (canary, champion)
        yield Answered(n, int(rng.binomial(n, rates[0]))), Answered(size - n, int(rng.binomial(size - n, rates[1])))


def compared(stream: Iterator[Batch]) -> int | None:
    return judged(stream)[0]


def both(stream: Iterator[Batch]) -> int | None:
    return judged(stream)[1]


def judged(stream: Iterator[Batch]) -> tuple[int | None, int | None]:
    """When the comparison alone goes back, and when a canary as it is judged does: by the comparison or the bound."""
    test, canary, champion = FailureTest(), Answered(0, 0), Answered(0, 0)
    at: int | None = None
    for part, other in stream:
        test, canary, champion = test.after(part, other), canary + part, champion + other
        if at is None and judge_canary(POLICY, CanaryLook(0, 0.0, 0, canary, champion, test)).action == "back":
            at = canary.answers
        if test.e_worse >= BOUNDARY:
            return canary.answers, at
    return None, at


def bounded(stream: Iterator[Batch]) -> int | None:
    total = Answered(0, 0)
    for part, _ in stream:
        total += part
        if e_above(total, POLICY.failures_at_most) >= BOUNDARY:
            return total.answers
    return None


def turner(stream: Iterator[Batch]) -> int | None:
    log_e, answers = 0.0, 0
    own_seen, other_seen = np.array([0.18, 0.18]), np.array([0.18, 0.18])  # failed, succeeded
    for part, other in stream:
        answers += part.answers
        p, q = own_seen[0] / own_seen.sum(), other_seen[0] / other_seen.sum()
        if p > q and part.answers and other.answers:
            mean = (part.answers * p + other.answers * q) / (part.answers + other.answers)
            for side, rate in ((part, p), (other, q)):
                log_e += side.failed * np.log(rate / mean)
                log_e += (side.answers - side.failed) * np.log((1 - rate) / (1 - mean))
        own_seen += (part.failed, part.answers - part.failed)
        other_seen += (other.failed, other.answers - other.failed)
        if log_e >= np.log(BOUNDARY):
            return answers
    return None


def peeking(stream: Iterator[Batch]) -> int | None:
    """Fisher's exact test, one-sided at 5 %, after every batch."""
    canary, other = Answered(0, 0), Answered(0, 0)
    for part, other_part in stream:
        canary, other = canary + part, other + other_part
        failed = canary.failed + other.failed
        if canary.failed * (canary.answers + other.answers) <= failed * canary.answers:
            continue
        if hypergeom.sf(canary.failed - 1, canary.answers + other.answers, failed, canary.answers) < 0.05:
            return canary.answers
    return None


def share_stopped(sims: int, stops: Stops, make: Callable[[np.random.Generator], Iterator[Batch]]) -> list[int | None]:
    return [stops(make(np.random.default_rng([7, seed]))) for seed in range(sims)]


def share_text(stops: list[int | None]) -> str:
    return f"{np.mean([at is not None for at in stops]):.2%}"


def false_stops(sims: int) -> None:
    print("\n## No worse: how often it is rolled back all the same\n")
    print(
        f"100 batches of 100 answers; promised are at most {POLICY.alpha:.0%} of compared and bound together. The last two"
    )
    print(f"columns: {sims // 4:,} canaries.\n")
    print("| failures, split | compared | compared or bound | Turner et al. | Fisher, peeking |\n|---|---|---|---|---|")
    for rate, share, outage in ((0.01, 0.05, 0), (0.01, 0.25, 0), (0.04, 0.5, 0), (0.01, 0.25, 0.03)):

        def make(rng: np.random.Generator, rate=rate, share=share, outage=outage) -> Iterator[Batch]:  # type: ignore[no-untyped-def]
            return batches(rng, rate, rate, share, 100, 100, outage)

        stops_at = [judged(make(np.random.default_rng([7, seed]))) for seed in range(sims)]
        cells = [share_text([pair[0] for pair in stops_at]), share_text([pair[1] for pair in stops_at])]
        cells += [share_text(share_stopped(sims // 4, stops, make)) for stops in (turner, peeking)]
        more = ", outages of both in 3 % of the batches" if outage else ""
        print(f"| {rate:.0%} on both sides, {share:.0%}{more} | {' | '.join(cells)} |", flush=True)
    bound = POLICY.failures_at_most
    at_bound = share_stopped(sims, bounded, lambda rng: batches(rng, bound, bound, 0.5, 100, 100))
    print(f"\nThe bound alone, at a rate of just {bound:.0%}: {share_text(at_bound)}.", flush=True)


def noticing(sims: int) -> None:
    print(f"\n## Worse: how many of its answers until it is rolled back (median, nine in ten; {sims:,} canaries)\n")
    print(
        "| failures of champion, canary; split; batch | compared or bound | compared | Turner et al. |\n|---|---|---|---|"
    )
    cases = ((0.01, 0.05, 0.05, 100), (0.01, 0.05, 0.05, 20), (0.01, 0.05, 0.25, 100), (0.01, 0.02, 0.25, 100))
    cases += ((0.001, 0.2, 0.05, 100), (0.0, 1.0, 0.05, 20))
    for champion, canary, share, size in cases:

        def make(rng: np.random.Generator, case=(canary, champion, share, size)) -> Iterator[Batch]:  # type: ignore[no-untyped-def]
            return batches(rng, *case, count=40_000 // case[3])

        cells = []
        for stops in (both, compared, turner):
            stops_at = [np.inf if at is None else at for at in share_stopped(sims, stops, make)]
            middle, high = np.quantile(stops_at, [0.5, 0.9], method="higher")
            cells.append(
                ", ".join("not within 40,000" if value == np.inf else f"{value:,.0f}" for value in (middle, high))
            )
        print(f"| {champion:.1%}, {canary:.0%}; {share:.0%}; {size} | {' | '.join(cells)} |", flush=True)


def widening(sims: int) -> None:
    print(f"\n## Shown to fail in at most 5 %: after how many of its answers ({sims:,} canaries)\n")
    looks = (100, 200, 300, 600, 1200, 2400)
    print(f"| failures | {' | '.join(f'{look:,}' for look in looks)} |\n|---|{'---|' * len(looks)}")
    for rate in (0.0, 0.01, 0.02, 0.03, 0.05, 0.06):
        cells = np.zeros(len(looks))
        for seed in range(sims):
            failed = np.cumsum(np.random.default_rng([8, seed]).random(looks[-1]) < rate)
            first = next((n for n in range(50, looks[-1] + 1, 50) if is_shown(n, int(failed[n - 1]))), None)
            cells += [first is not None and first <= look for look in looks]
        print(f"| {rate:.0%} | {' | '.join(f'{cell / sims:.0%}' for cell in cells)} |", flush=True)


def is_shown(answers: int, failed: int) -> bool:
    bound = POLICY.failures_at_most
    return failure_rate(Answered(answers, failed), at_most=bound, alpha=POLICY.alpha).rate.high <= bound


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sims", type=int, default=2000)
    sims = parser.parse_args().sims
    began = time.monotonic()
    print(f"{datetime.now(UTC):%Y-%m-%d}, {sims:,} simulated canaries per figure", flush=True)
    false_stops(sims)
    noticing(sims // 4)
    widening(sims // 4)
    print(f"\n{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
