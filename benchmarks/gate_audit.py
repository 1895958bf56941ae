"""How often the gate is wrong, and how often it decides, in the scenarios of an audit of version 0.1.

    git worktree add ../before 39ac073
    python benchmarks/gate_audit.py --sims 1000 --processes 2 --before ../before

Each row simulates one scenario (``gate_scenarios``) with the public functions of the gate, in this checkout and in ``--before``. A
scenario without a difference has a nominal error: the alpha of a first pair of versions (3 %), 2.5 % on one side for a gain or for
forgetting, 5 % for a canary, a watch or a latency. "Error" is the share of wrong decisions there, for example promotions. "Power" is
the share of right decisions, for example promotions of a candidate that is better. Votes are looked at three times, and a
promotion at any look counts; each look uses the highest evidence so far, so more looks change little.

"(audit)" marks a figure that the audit found in version 0.1 where its code cannot be simulated here. Exits 1 if a scenario is above
its nominal error by more than two standard errors.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from gate_scenarios.scenario import Scenario

MODULES = ("votes", "gains", "forgetting", "canary", "watch", "latency")
Shares = dict[str, float]
"""The share of trials that decided, by the name of the scenario."""


def scenarios(only: str) -> list[Scenario]:
    modules = [importlib.import_module(f"gate_scenarios.{name}") for name in MODULES]
    return [each for module in modules for each in module.SCENARIOS if each.name.startswith(only)]


def trials(scenario: Scenario, sims: int) -> int:
    return max(1, round(scenario.share * sims))


def simulate(name: str, sims: int) -> tuple[str, float]:
    """Simulate one scenario, by name, because a trial cannot be sent to another process."""
    (scenario,) = (each for each in scenarios("") if each.name == name)
    rng, start, count = (
        np.random.default_rng([2026, zlib.crc32(name.encode())]),
        time.monotonic(),
        trials(scenario, sims),
    )
    share = sum(scenario.trial(rng) for _ in range(count)) / count
    print(f"{name}: {share:.3f} ({time.monotonic() - start:.0f} s)", file=sys.stderr, flush=True)
    return name, share


def shares(sims: int, only: str, processes: int) -> Shares:
    names = [each.name for each in scenarios(only)]
    with ProcessPoolExecutor(processes) as pool:
        return dict(pool.map(partial(simulate, sims=sims), names))


def shares_before(checkout: Path, sims: int, only: str, processes: int) -> Shares:
    command = [sys.executable, __file__, "--json", "--sims", str(sims), "--only", only, "--processes", str(processes)]
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def is_above(scenario: Scenario, share: float, sims: int) -> bool:
    """Return whether an error is above its nominal one by more than two standard errors."""
    if scenario.kind != "error" or scenario.nominal is None:
        return False
    nominal = scenario.nominal
    return share > nominal + 2 * math.sqrt(nominal * (1 - nominal) / trials(scenario, sims))


def table(before: Shares, now: Shares, sims: int) -> Iterator[str]:
    heads = {
        "error": "scenario | nominal error, % | error before | error now | simulations",
        "outside": "outside of what the tests promise | decisions before, % | now | simulations",
        "power": "scenario | power before, % | power now | simulations",
    }
    for kind, head in heads.items():
        rows = [each for each in scenarios("") if each.kind == kind and each.name in now]
        if rows:
            yield f"| {head} |\n|{'---|' * (head.count('|') + 1)}"
            yield from (row(each, before, now[each.name], sims) for each in rows)
            yield ""


def row(scenario: Scenario, before: Shares, share: float, sims: int) -> str:
    old = f"{100 * before[scenario.name]:.1f}" if scenario.name in before else "-"
    if old == "-" and scenario.audit:
        old = f"{scenario.audit} (audit)"
    nominal = [f"{100 * scenario.nominal:.1f}"] if scenario.nominal is not None else []
    mark = " **above**" if is_above(scenario, share, sims) else ""
    cells = [scenario.name, *nominal, old, f"{100 * share:.1f}{mark}", f"{trials(scenario, sims):,}"]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sims", type=int, default=400)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--before", type=Path, help="a checkout with the gate to compare with")
    parser.add_argument("--only", default="", help="simulate only the scenarios whose name begins so, e.g. gain")
    parser.add_argument("--json", action="store_true", help="print the shares of this checkout alone")
    arguments = parser.parse_args()
    how = arguments.sims, arguments.only, arguments.processes
    if arguments.json:
        print(json.dumps(shares(*how)))
        return 0
    before = shares_before(arguments.before, *how) if arguments.before is not None else {}
    now = shares(*how)
    print("\n".join(table(before, now, arguments.sims)))
    return int(any(is_above(each, now[each.name], arguments.sims) for each in scenarios(arguments.only)))


if __name__ == "__main__":
    sys.exit(main())
