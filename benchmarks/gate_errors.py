"""How often the promotion gate errs, and how soon it decides.

    python benchmarks/gate_errors.py

Every figure comes from 10,000 simulated comparisons (``--sims``), so a share near 5 % is known to within 0.4 points
(two standard errors). "Promoted" means at any of all the looks, one after every vote. A voter's score changes the
capital only when it is final, so looking after every vote and after every voter see the same capitals;
``whole path`` runs the real functions on interleaved votes instead of simulated scores. The figures are of betting alone;
``gate_audit.py`` simulates the whole test with its planned looks, shared prompts and voters who judge at once.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
from gate_coverage import print_coverage
from scipy.stats import binom, t

from mlflow_finetune_plugin.gate.evidence import Evidence, Votes
from mlflow_finetune_plugin.gate.policy import GatePolicy, VotesPolicy
from mlflow_finetune_plugin.gate.statistics.error_budget import candidate_alpha
from mlflow_finetune_plugin.gate.statistics.ranking import Comparison, rank
from mlflow_finetune_plugin.gate.statistics.sequential import (
    VOTE_STAKES,
    VOTER_STAKES,
    Stakes,
    log_factors,
    scores_still_needed,
)
from mlflow_finetune_plugin.gate.verdict import judge
from mlflow_finetune_plugin.gate.vote_test import run_vote_test
from mlflow_finetune_plugin.gate.votes import Vote

MINIMUM = 10
CHOICES = ("champion", "candidate")
Draw = Callable[[np.random.Generator, int], np.ndarray]
"""Half points 0 .. 2k of one more voter in each of (sims,) comparisons."""


Taste = Callable[[np.random.Generator, int], np.ndarray]
"""Chance that each of (n,) voters prefers the candidate."""


def tastes(a: float, b: float) -> Taste:
    return lambda rng, n: rng.beta(a, b, size=n)


def alike(share: float) -> Taste:
    return lambda rng, n: np.full(n, share)


def voters(taste: Taste, votes: int = 5, ties: float = 0.0) -> Draw:
    def draw(rng: np.random.Generator, sims: int) -> np.ndarray:
        tied = rng.binomial(votes, ties, size=sims)
        return 2 * rng.binomial(votes - tied, taste(rng, sims)) + tied

    return draw


def leavers(taste: Taste, leaves_at: int, chance: float, votes: int = 5, missing: int = 1) -> Draw:
    """Voters who leave with ``chance`` after a vote of outcome ``leaves_at``; a vote not cast has ``missing`` half points."""

    def draw(rng: np.random.Generator, sims: int) -> np.ndarray:
        share, points, stays = taste(rng, sims), np.zeros(sims, int), np.ones(sims, bool)
        for _ in range(votes):
            won = rng.random(sims) < share
            points += np.where(stays, 2 * won, missing)
            stays &= (won != leaves_at) | (rng.random(sims) >= chance)
        return points

    return draw


def capitals(draw: Draw, votes: int, stakes: Stakes, sims: int, steps: int, seed: int) -> Iterator[tuple]:
    """(half points, capital betting on better) after each of ``steps`` voters, (sims,) each."""
    rng = np.random.default_rng(seed)
    factors = np.exp(log_factors(np.arange(2 * votes + 1) / (2 * votes), stakes))
    capital = np.broadcast_to(np.exp(stakes.log_weights), (sims, len(stakes.shares))).copy()
    for _ in range(steps):
        points = draw(rng, sims)
        capital *= factors[points]
        yield points, capital.sum(axis=1)


def first_crossing(draw: Draw, votes: int, stakes: Stakes, sims: int, steps: int, alpha: float = 0.05) -> np.ndarray:
    """Number of the voter (or vote) at which the candidate is promoted, ``steps`` + 1 where it never is; (sims,)."""
    at = np.full(sims, steps + 1)
    for i, (_, capital) in enumerate(capitals(draw, votes, stakes, sims, steps, seed=1), start=1):
        if i >= MINIMUM:
            at[(capital >= 1 / alpha) & (at > steps)] = i
        if at.max() <= steps:
            break
    return at


def naive_voters(draw: Draw, votes: int, sims: int, steps: int) -> float:
    """Share ever promoted by Student's one-sided p < 5 % over voters' scores, looked at after every voter."""
    rng = np.random.default_rng(1)
    total, squares, ever = np.zeros(sims), np.zeros(sims), np.zeros(sims, bool)
    for n in range(1, steps + 1):
        x = draw(rng, sims) / (2 * votes) - 0.5
        total, squares = total + x, squares + x * x
        if n >= MINIMUM:
            spread = np.sqrt(np.maximum(squares - total**2 / n, 1e-12) / (n - 1) / n)
            ever |= total / n > t.isf(0.05, n - 1) * spread
    return ever.mean()


def naive_votes(draw: Draw, sims: int, steps: int) -> float:
    """Share ever promoted by the exact binomial p < 5 %, looked at after every decisive vote."""
    rng, won, ever = np.random.default_rng(1), np.zeros(sims, int), np.zeros(sims, bool)
    for n in range(1, steps + 1):
        won += draw(rng, sims) // 2
        if n >= MINIMUM:
            ever |= binom.sf(won - 1, n, 0.5) <= 0.05
    return ever.mean()


def correlated_votes(a: float, b: float, per_voter: int) -> Draw:
    """Decisive votes one by one, ``per_voter`` in a row from each of voters who differ."""
    state: dict[str, object] = {"left": 0}

    def draw(rng: np.random.Generator, sims: int) -> np.ndarray:
        if state["left"] == 0:
            state["left"], state["share"] = per_voter, rng.beta(a, b, size=sims)
        state["left"] -= 1
        return 2 * (rng.random(sims) < state["share"])

    return draw


def whole_path(sims: int, n_voters: int = 60) -> tuple[float, float]:
    """Share promoted from interleaved votes of Beta(2, 2) voters who leave at random, and the share of them unfinished."""
    rng, promoted, unfinished, counted = np.random.default_rng(2), 0, 0, 0
    for _ in range(sims):
        cast = np.minimum(rng.geometric(0.25, size=n_voters), 12)
        begins = np.cumsum(rng.exponential(size=n_voters))
        voter = np.repeat(np.arange(n_voters), cast)
        when = begins[voter] + rng.exponential(3, size=len(voter))  # some six voters at a time
        won = rng.random(len(voter)) < rng.beta(2, 2, size=n_voters)[voter]
        cast_votes = tuple(Vote(str(voter[i]), CHOICES[int(won[i])]) for i in np.argsort(when))
        test = run_vote_test(VotesPolicy(), Votes(cast_votes))
        promoted += test.outcome == "better"
        unfinished, counted = unfinished + test.unfinished, counted + test.counted
    return promoted / sims, unfinished / counted


def print_false_promotions(sims: int) -> None:
    print("\n## No preference: how often a candidate is promoted all the same\n")
    print(
        "Voter-level: 200 voters, up to 5 votes each, decided from the tenth voter on. Naive: Student's t, p < 5 %.\n"
    )
    print("| voters | gate | naive peeking |\n|---|---|---|")
    fair, beta2, beta4, torn = alike(0.5), tastes(2, 2), tastes(4, 4), tastes(0.01, 0.01)
    cases: dict[str, tuple[Draw, int]] = {
        "all undecided": (voters(fair), 5),
        "all undecided, 30 % ties": (voters(fair, ties=0.3), 5),
        "differ as Beta(4, 4)": (voters(beta4), 5),
        "differ as Beta(4, 4), 30 % ties": (voters(beta4, ties=0.3), 5),
        "differ as Beta(2, 2)": (voters(beta2), 5),
        "differ as Beta(2, 2), 30 % ties": (voters(beta2, ties=0.3), 5),
        "half love, half loathe it": (voters(torn), 5),
        "all undecided, leave at the first win": (leavers(fair, 1, 1.0), 5),
        "all undecided, leave at the first loss": (leavers(fair, 0, 1.0), 5),
        "outside the promise: Beta(2, 2), every second one leaves after a loss": (leavers(beta2, 0, 0.5), 5),
        "the same, votes not cast weighed as lost": (leavers(beta2, 0, 0.5, missing=0), 5),
        "the same with per_voter 1": (leavers(beta2, 0, 0.5, votes=1), 1),
    }
    for name, (draw, votes) in cases.items():
        ever = (first_crossing(draw, votes, VOTER_STAKES, sims, 200) <= 200).mean()
        print(f"| {name} | {ever:.2%} | {naive_voters(draw, votes, sims, 200):.1%} |", flush=True)
    promoted, unfinished = whole_path(sims)
    print(
        f"| whole path: 60 voters at once, Beta(2, 2), 1 to 12 votes ({unfinished:.0%} unfinished) | {promoted:.2%} | |"
    )
    print("\nVote-level: 600 decisive votes, decided from the tenth on. Naive: exact binomial, p < 5 %.\n")
    print("| votes | gate | naive peeking |\n|---|---|---|")
    vote_cases: dict[str, Callable[[], Draw]] = {
        "fair coins (ties are left out)": lambda: voters(fair, votes=1),
        "outside the promise: Beta(4, 4) voters, 5 votes each": lambda: correlated_votes(4, 4, 5),
        "outside the promise: Beta(2, 2) voters, 5 votes each": lambda: correlated_votes(2, 2, 5),
    }
    for name, make in vote_cases.items():
        ever = (first_crossing(make(), 1, VOTE_STAKES, sims, 600) <= 600).mean()
        print(f"| {name} | {ever:.2%} | {naive_votes(make(), sims, 600):.1%} |", flush=True)


def print_repeated_candidates(sims: int, candidates: int = 20) -> None:
    print(f"\n## {candidates} candidates without preference, one after the other, 100 Beta(4, 4) voters each\n")
    peaks = []
    for number in range(candidates):
        path = capitals(voters(tastes(4, 4)), 5, VOTER_STAKES, sims, 100, seed=100 + number)
        peaks.append(np.max([c for i, (_, c) in enumerate(path, start=1) if i >= MINIMUM], axis=0))
    shared = np.any([peak >= 1 / candidate_alpha(0.05, i) for i, peak in enumerate(peaks, start=1)], axis=0).mean()
    alone = np.any([peak >= 20 for peak in peaks], axis=0).mean()
    print(
        f"Any of them promoted: {shared:.2%} with one shared budget of 5 %, {alone:.1%} with 5 % for each.", flush=True
    )


def print_power(sims: int) -> None:
    print("\n## A preferred candidate: median number of voters to promote (within 400; 90 % of cases in brackets)\n")
    rates = (0.55, 0.6, 0.65, 0.7, 0.8)
    print("| votes per voter, voters | " + " | ".join(map(str, rates)) + " |\n|---|" + "---|" * len(rates))

    def cells(steps: int, make: Callable[[float], Draw], votes: int, stakes: Stakes, alpha: float = 0.05) -> str:
        texts = []
        for rate in rates:
            at = first_crossing(make(rate), votes, stakes, sims, steps, alpha)
            shown = [f"{q:.0f}" if q <= steps else f"> {steps}" for q in np.quantile(at, (0.5, 0.9))]
            texts.append(f"{shown[0]} ({shown[1]})")
        return " | ".join(texts)

    for votes in (1, 3, 5, 10):
        row = cells(400, lambda p, k=votes: voters(alike(p), k), votes, VOTER_STAKES)
        print(f"| {votes}, all alike | {row} |", flush=True)
    for name, ties, alpha in (
        ("5, differ", 0.0, 0.05),
        ("5, differ, 20 % ties", 0.2, 0.05),
        ("5, differ, first of a shared budget", 0.0, candidate_alpha(0.05, 1)),
    ):
        row = cells(400, lambda p, s=ties: voters(tastes(8 * p, 8 * (1 - p)), 5, s), 5, VOTER_STAKES, alpha)
        print(f"| {name} | {row} |", flush=True)
    print("\nDiffer: Beta with this mean and a + b = 8. Vote-level, median decisive votes (within 2,000):\n")
    print("| | " + " | ".join(map(str, rates)) + " |\n|---|" + "---|" * len(rates))
    print(f"| decisive votes | {cells(2000, lambda p: voters(alike(p), 1), 1, VOTE_STAKES)} |", flush=True)


def print_forecasts(sims: int) -> None:
    print("\n## How good the estimate of voters still needed is, at a true rate of .65, 5 votes each, all alike\n")
    path = list(capitals(voters(alike(0.65)), 5, VOTER_STAKES, sims, 400, seed=3))
    points = np.array([p for p, _ in path])  # (voters, sims)
    rich = np.array([c for _, c in path]) >= 20
    rich[: MINIMUM - 1] = False
    at = np.where(rich.any(axis=0), rich.argmax(axis=0) + 1, 401)
    for judged in (10, 20):
        open_now = np.flatnonzero(at > judged)[:1000]
        forecasts = [
            scores_still_needed(points[:judged, i] / 10, VOTER_STAKES, alpha=0.05, minimum=MINIMUM) for i in open_now
        ]
        needed = at[open_now] - judged
        has_forecast = np.array([x is not None for x in forecasts])
        enough = np.mean([n <= x for n, x in zip(needed, forecasts, strict=True) if x is not None])
        middle = statistics.median(x for x in forecasts if x is not None)
        print(
            f"- undecided after {judged} voters ({len(open_now)} cases): an estimate in {has_forecast.mean():.0%}, median "
            f"{middle:.0f} more; truly {np.median(needed):.0f} more; the estimate was enough in {enough:.0%}",
            flush=True,
        )


def print_times() -> None:
    print("\n## Time of one decision (median of 9, CPU time)\n")
    rng = np.random.default_rng(4)

    def timed(run: Callable[[], object]) -> float:
        times = []
        for _ in range(9):
            start = time.process_time()
            run()
            times.append(time.process_time() - start)
        return 1000 * statistics.median(times)

    drawn = zip(rng.integers(2000, size=10_000), rng.integers(2, size=10_000), strict=True)
    votes = Votes(tuple(Vote(str(v), CHOICES[c]) for v, c in drawn))
    for unit, cap in (("voter", 5), ("vote", 1000)):
        policy = GatePolicy.model_validate({"gain": None, "votes": {"unit": unit, "per_voter": cap, "required": True}})
        print(
            f"- 10,000 votes of 2,000 voters, unit {unit}: {timed(lambda p=policy: judge(p, Evidence(True, votes=votes))):.0f} ms"
        )
    pairs = [rng.choice(5, size=2, replace=False) for _ in range(10_000)]
    compared = [
        Comparison(str(i % 500), f"m{a}", f"m{b}", int(rng.random() < 0.5 + 0.05 * (a - b)))
        for i, (a, b) in enumerate(pairs)
    ]
    print(
        f"- ranking 5 models by 10,000 comparisons of 500 voters, 1,000 resamples: {timed(lambda: rank(compared)):.0f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sims", type=int, default=10_000)
    sims = parser.parse_args().sims
    start = time.time()
    for part in (print_false_promotions, print_repeated_candidates, print_power, print_forecasts, print_coverage):
        part(sims)
    print_times()
    print(f"\n{sims:,} simulated comparisons per figure, {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
