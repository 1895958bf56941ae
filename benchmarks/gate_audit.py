"""How often the gate is wrong, and how often it decides, in the scenarios of an audit of version 0.1.

    git worktree add ../before v0.1 (or any commit with the old gate)
    python benchmarks/gate_audit.py --before ../before

Each row simulates one scenario with the public functions of the gate, in this checkout and in ``--before``. A scenario without
a difference has a nominal error: the alpha of a first pair of versions (3 %), or 2.5 % on one side for a gain. "Error" is the
share of promotions there. "Power" is the share of promotions of a candidate that is better. Votes are looked at three times,
and a promotion at any look counts; each look uses the highest evidence so far, so more looks change little.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from mlflow_finetune_plugin.evaluation.intervals import mean_interval, paired_binary_interval
from mlflow_finetune_plugin.gate.criteria import judge_forgetting, judge_gain, judge_votes
from mlflow_finetune_plugin.gate.evidence import Evidence, Forgetting, Gain, Votes
from mlflow_finetune_plugin.gate.policy import ForgettingPolicy, GainPolicy, VotesPolicy
from mlflow_finetune_plugin.gate.statistics.error_budget import candidate_alpha
from mlflow_finetune_plugin.gate.statistics.paired import PairedRows
from mlflow_finetune_plugin.gate.votes import Vote

Rng = np.random.Generator
Cast = list[tuple[int, bool, int | None]]
"""(voter, whether the candidate won, prompt) of each vote, in order."""

T0 = datetime(2026, 1, 1, tzinfo=UTC)
HAS_PROMPTS = "prompt" in inspect.signature(Vote).parameters
NUMBERS_GAINS = "number" in inspect.signature(Gain).parameters
LOOKS = 3
FIRST_PAIR = 0.05 * 6 / math.pi**2


def in_turns(voters: int, each: int, share: Callable[[Rng, int], np.ndarray], *, at_once: bool = False):
    """Voters whose chances of preferring the candidate are ``share``, one after another or all at once."""

    def cast(rng: Rng) -> Cast:
        tastes = share(rng, voters)
        turns = (
            [(v, i) for i in range(each) for v in range(voters)]
            if at_once
            else [(v, i) for v in range(voters) for i in range(each)]
        )
        return [(v, bool(rng.random() < tastes[v]), None) for v, _ in turns]

    return cast


def on_prompts(voters: int, each: int, prompts: int, effect: Callable[[Rng, int], np.ndarray]):
    """Voters who share prompts; ``effect`` is the chance that the candidate wins on each prompt."""

    def cast(rng: Rng) -> Cast:
        shares = effect(rng, prompts)
        return [(v, bool(rng.random() < shares[p]), p) for v in range(voters) for p in rng.integers(prompts, size=each)]

    return cast


def busy(rng: Rng) -> Cast:
    """Half of the voters cast 5 votes and prefer the candidate with .6, the others cast 1 with .4."""
    votes: Cast = []
    for voter in range(200):
        share, each = (0.6, 5) if rng.random() < 0.5 else (0.4, 1)
        votes += [(voter, bool(rng.random() < share), None) for _ in range(each)]
    return votes


def leaving(rng: Rng) -> Cast:
    """Voters leave when more of their votes were for the champion; tastes are Beta(8, 8)."""
    votes: Cast = []
    for voter in range(200):
        share, lead = rng.beta(8, 8), 0
        for _ in range(5):
            won = bool(rng.random() < share)
            lead += 1 if won else -1
            votes.append((voter, won, None))
            if lead < 0:
                break
    return votes


def alike(share: float) -> Callable[[Rng, int], np.ndarray]:
    return lambda rng, n: np.full(n, share)


def beta(a: float, b: float) -> Callable[[Rng, int], np.ndarray]:
    return lambda rng, n: rng.beta(a, b, n)


def haters(share: float) -> Callable[[Rng, int], np.ndarray]:
    return lambda rng, n: np.where(rng.random(n) < share, 0.0, 0.5 / (1 - share))


def promoted_by_votes(cast: Callable[[Rng], Cast]) -> Callable[[Rng], bool]:
    """Judge at several looks; the last is a day after the last vote, when every voter is finished."""

    def trial(rng: Rng) -> bool:
        drawn = cast(rng)
        votes = tuple(
            Vote(
                str(v),
                "candidate" if won else "champion",
                *(() if not HAS_PROMPTS else (None if p is None else str(p), T0 + timedelta(seconds=n))),
            )
            for n, (v, won, p) in enumerate(drawn)
        )
        for end in np.unique(np.linspace(0, len(votes), LOOKS + 1).astype(int))[1:]:
            late = timedelta(hours=48 if end == len(votes) else 0, seconds=int(end))
            now = {"read_at": T0 + late} if HAS_PROMPTS else {}
            if judge_votes(VotesPolicy(required=True), Votes(votes[:end], 1, **now)).outcome == "pass":
                return True
        return False

    return trial


def promoted_by_gain(draw: Callable[[Rng], tuple[np.ndarray, np.ndarray, tuple | None]]) -> Callable[[Rng], bool]:
    """Judge the first gain of a model."""
    return lambda rng: passes(*draw(rng), number=1)


def passes(candidate: np.ndarray, champion: np.ndarray, clusters: tuple | None = None, *, number: int) -> bool:
    """Judge one gain, the test with this ``number`` before any was shown. The first preview does not number gains."""
    rows = PairedRows(
        tuple(map(str, range(len(candidate)))), tuple(candidate.tolist()), tuple(champion.tolist()), clusters
    )
    numbered = {"number": number} if NUMBERS_GAINS else {}
    gain = Gain("exact_match", "champion", rows, **numbered)
    return judge_gain(GainPolicy(), Evidence(True, gain=gain)).outcome == "pass"


def any_of(candidates: int):
    """Candidates that are as good as the champion, judged one after another on the same 200 rows."""

    def trial(rng: Rng) -> bool:
        ease = rng.beta(2, 1, 200)
        champion = (rng.random(200) < ease).astype(float)
        for number in range(1, candidates + 1):
            candidate = (rng.random(200) < ease).astype(float)
            part = candidate_alpha(0.025, number) if NUMBERS_GAINS else 0.025
            # The gate's interval holds Tango's, so a gain that this one does not show needs no simulation of the wider one.
            if paired_binary_interval(champion, candidate, 1 - 2 * part).low <= 0:
                continue
            if passes(candidate, champion, number=number):
                return True
        return False

    return trial


def after(candidates: int, draw):
    """Judge a better candidate after so many that were not."""
    return lambda rng: passes(*draw(rng), number=candidates + 1)


def passes_on_texts(draw: Callable[[Rng, int], np.ndarray]) -> Callable[[Rng], bool]:
    """Judge forgetting on 40 texts of 500 tokens, where the mean harm equals the bound."""

    def trial(rng: Rng) -> bool:
        harm = draw(rng, 40)
        if NUMBERS_GAINS:
            measured = Forgetting(tuple(map(str, range(40))), tuple(harm.tolist()), (500.0,) * 40)
        else:
            tokens = np.full(40, 500.0)
            measured = mean_interval(np.stack([0 * harm, tokens], 1), np.stack([500 * harm, tokens], 1))
        return judge_forgetting(ForgettingPolicy(at_most=0.1), measured).outcome == "pass"

    return trial


def few_differ(expected: float, *, graded: bool, repeats: bool):
    """200 rows of equal models, of which ``expected`` differ; with ``repeats`` two rows share a question."""

    def draw(rng: Rng):
        differs, wins = rng.random(200) < expected / 200, rng.random(200) < 0.5
        size = rng.uniform(0.2, 1, 200) if graded else np.ones(200)
        clusters = (*range(199), 198) if repeats else None
        return differs * wins * size, differs * ~wins * size, clusters

    return draw


def documents(count: int, rows: int):
    """Rows of documents, declared as clusters: the candidate wins or loses whole documents."""

    def draw(rng: Rng):
        shares = np.repeat(rng.beta(0.5, 0.5, count), rows)
        differs, wins = rng.random(count * rows) < 0.5, rng.random(count * rows) < shares
        names = tuple(np.repeat(np.arange(count), rows).tolist())
        return (differs & wins).astype(float), (differs & ~wins).astype(float), names

    return draw


def gains(share: float, gained: float, *, repeats: bool = False):
    """200 rows of which ``share`` differ, the candidate right on ``gained`` of these."""

    def draw(rng: Rng):
        differs, wins = rng.random(200) < share, rng.random(200) < gained
        return (differs & wins).astype(float), (differs & ~wins).astype(float), (*range(199), 198) if repeats else None

    return draw


def rare_disaster(rows: int):
    """A candidate that gains 0.02 on nearly every row, and loses 0.98 on 2 % of them: no better, with a gain of 0 in the mean."""

    def draw(rng: Rng):
        gain = np.where(rng.random(rows) < 0.02, -0.98, 0.02 + rng.normal(0, 0.005, rows))
        return np.maximum(gain, 0), np.maximum(-gain, 0), None

    return draw


def graded(rows: int, gain: float, spread: float):
    """Rows of a graded metric, such as token_f1, with normal differences."""

    def draw(rng: Rng):
        gains = np.clip(rng.normal(gain, spread, rows), -1, 1)
        return np.maximum(gains, 0), np.maximum(-gains, 0), None

    return draw


def nearly_all(rng: Rng):
    right = np.ones(200)
    right[rng.permutation(200)[:3]] = 0
    return right, np.zeros(200), (*range(199), 198)


ERRORS = {
    "votes: alike, one after another": (promoted_by_votes(in_turns(40, 5, alike(0.5))), FIRST_PAIR),
    "votes: alike, at once": (promoted_by_votes(in_turns(40, 5, alike(0.5), at_once=True)), FIRST_PAIR),
    "votes: one vote each": (promoted_by_votes(in_turns(60, 1, alike(0.5))), FIRST_PAIR),
    "votes: tastes Beta(2, 2)": (promoted_by_votes(in_turns(40, 5, beta(2, 2))), FIRST_PAIR),
    "votes: tastes Beta(.5, .5)": (promoted_by_votes(in_turns(40, 5, beta(0.5, 0.5))), FIRST_PAIR),
    "votes: a tenth always against": (promoted_by_votes(in_turns(40, 5, haters(0.1))), FIRST_PAIR),
    "votes: 5 shared prompts": (promoted_by_votes(on_prompts(200, 5, 5, beta(1, 1))), FIRST_PAIR),
    "votes: 10 shared prompts": (promoted_by_votes(on_prompts(200, 5, 10, beta(1, 1))), FIRST_PAIR),
    "votes: 100 shared prompts": (promoted_by_votes(on_prompts(200, 5, 100, beta(1, 1))), FIRST_PAIR),
    "votes: 200 shared prompts": (promoted_by_votes(on_prompts(200, 5, 200, beta(1, 1))), FIRST_PAIR),
    "votes: busy voters prefer it": (promoted_by_votes(busy), FIRST_PAIR),
    "votes: voters leave when behind": (promoted_by_votes(leaving), FIRST_PAIR),
    **{
        f"gain: {n} of 200 graded rows differ": (promoted_by_gain(few_differ(n, graded=True, repeats=False)), 0.025)
        for n in (1, 2, 3, 4)
    },
    **{
        f"gain: {n} of 200 differ, a repeated question": (
            promoted_by_gain(few_differ(n, graded=False, repeats=True)),
            0.025,
        )
        for n in (2, 4)
    },
    "gain: 20 documents of 10 rows, declared": (promoted_by_gain(documents(20, 10)), 0.025),
    "gain: 20 documents of 50 rows, declared": (promoted_by_gain(documents(20, 50)), 0.025),
    **{f"gain: any of {n} equal candidates on the same rows": (any_of(n), 0.025) for n in (5, 20, 50)},
    **{
        f"gain: of 0.02 with a rare disaster, {n} graded rows": (promoted_by_gain(rare_disaster(n)), 0.025)
        for n in (20, 50, 200)
    },
    "forgetting: 40 texts, normal": (passes_on_texts(lambda rng, n: rng.normal(0.1, 0.1, n)), 0.025),
    "forgetting: 40 texts, exponential": (passes_on_texts(lambda rng, n: rng.exponential(0.1, n)), 0.025),
    "forgetting: 40 texts, lognormal with a sigma of 1.2": (
        passes_on_texts(lambda rng, n: 0.1 * rng.lognormal(-0.72, 1.2, n)),
        0.025,
    ),
}
POWERS = {
    **{
        f"votes: {n} voters of 5 at .{share}, {'at once' if at_once else 'one after another'}": promoted_by_votes(
            in_turns(n, 5, alike(share / 100), at_once=at_once)
        )
        for n, share in ((10, 80), (20, 65), (50, 65), (50, 60))
        for at_once in (False, True)
    },
    "votes: 20 voters of 20 at .80, at once": promoted_by_votes(in_turns(20, 20, alike(0.8), at_once=True)),
    "votes: 50 voters of 5 at .65 on 200 prompts": promoted_by_votes(on_prompts(50, 5, 200, alike(0.65))),
    "gain: 0.10 of 200 rows, 30 % differ": promoted_by_gain(gains(0.3, 2 / 3)),
    "gain: 0.10 of 200 rows, after 4 equal candidates": after(4, gains(0.3, 2 / 3)),
    "gain: 0.20 of 200 rows, 30 % differ": promoted_by_gain(gains(0.3, 5 / 6)),
    "gain: 0.20 of 200 rows, after 4 equal candidates": after(4, gains(0.3, 5 / 6)),
    "gain: 0.20 of 200 rows, after 19 equal candidates": after(19, gains(0.3, 5 / 6)),
    "gain: the same with a repeated question": promoted_by_gain(gains(0.3, 2 / 3, repeats=True)),
    "gain: 0.10 (deviation 0.20) of 40 graded rows": promoted_by_gain(graded(40, 0.10, 0.20)),
    "gain: 0.05 (deviation 0.20) of 200 graded rows": promoted_by_gain(graded(200, 0.05, 0.20)),
    "gain: 0.20 (deviation 0.30) of 50 graded rows": promoted_by_gain(graded(50, 0.20, 0.30)),
    "gain: 0 to 197 of 200, a repeated question": promoted_by_gain(nearly_all),
}


def shares(sims: int, only: str) -> dict[str, float]:
    scenarios = {name: trial for name, (trial, _) in ERRORS.items()} | POWERS
    scenarios = {name: trial for name, trial in scenarios.items() if name.startswith(only)}
    found = {}
    for number, (name, trial) in enumerate(scenarios.items()):
        rng, start = np.random.default_rng([2026, number]), time.monotonic()
        found[name] = sum(trial(rng) for _ in range(sims)) / sims
        print(f"{name}: {found[name]:.3f} ({time.monotonic() - start:.0f} s)", file=sys.stderr, flush=True)
    return found


def table(before: dict[str, float] | None, now: dict[str, float], sims: int) -> Iterator[str]:
    def old(name: str) -> str:
        return "-" if before is None else f"{100 * before[name]:.1f}"

    yield "| scenario | nominal error, % | error before | error now |"
    yield "|---|---|---|---|"
    for name, (_, nominal) in ERRORS.items():
        if name not in now:
            continue
        most = nominal + 2 * math.sqrt(nominal * (1 - nominal) / sims)
        mark = " **above**" if now[name] > most else ""
        yield f"| {name} | {100 * nominal:.1f} | {old(name)} | {100 * now[name]:.1f}{mark} |"
    yield ""
    yield "| scenario | power before, % | power now |"
    yield "|---|---|---|"
    for name in (name for name in POWERS if name in now):
        yield f"| {name} | {old(name)} | {100 * now[name]:.1f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sims", type=int, default=400)
    parser.add_argument("--before", type=Path, help="a checkout with the gate to compare with")
    parser.add_argument("--only", default="", help="simulate only the scenarios whose name begins so, e.g. gain")
    parser.add_argument("--json", action="store_true", help="print the shares of this checkout alone")
    arguments = parser.parse_args()
    if arguments.json:
        print(json.dumps(shares(arguments.sims, arguments.only)))
        return 0
    before = None
    if arguments.before is not None:
        command = [sys.executable, __file__, "--json", "--sims", str(arguments.sims), "--only", arguments.only]
        environment = {**os.environ, "PYTHONPATH": str(arguments.before.resolve())}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        before = json.loads(done.stdout)
    now = shares(arguments.sims, arguments.only)
    print(
        f"{arguments.sims:,} simulations each; two standard errors at 2.5 % are {200 * math.sqrt(0.0244 / arguments.sims):.1f} points\n"
    )
    print("\n".join(table(before, now, arguments.sims)))
    is_above = any(
        now[name] > nominal + 2 * math.sqrt(nominal * (1 - nominal) / arguments.sims)
        for name, (_, nominal) in ERRORS.items()
        if name in now
    )
    return int(is_above)


if __name__ == "__main__":
    sys.exit(main())
