"""How often equal models pass the gain and the proof where held-out rows come in groups, with and without ``data.group``.

    python benchmarks/gate_groups.py --sims 1000

Each customer has rows of which the candidate wins most or loses most, so rows of a customer are not independent; over all
customers the models are equal. The nominal error is 2.5 %, one side of a 95 % interval. "Without" is the same rows where the
recipe does not name the column of the customer.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from gate_scenarios.gains import documents, promoted_by_gain
from gate_scenarios.scenario import Rng

from mlflow_finetune_plugin.evaluation.clusters import clusters_of
from mlflow_finetune_plugin.evaluation.comparison import AnswerSet, compare, load_metrics
from mlflow_finetune_plugin.evaluation.results import EvalRow

NOMINAL = 0.025
SIZES = ((3, 60), (6, 33), (10, 20), (20, 10), (40, 5), (100, 2))
Draw = Callable[[Rng], tuple[np.ndarray, np.ndarray, tuple | None]]


def customers(count: int, rows: int, *, is_named: bool) -> Draw:
    """Rows of 0 and 1 of ``count`` customers, with the clusters that the gate and the proof find in them."""
    held_out = [
        EvalRow(({"role": "user", "content": f"q{i}"},), (1,), (2,), "yes", "t", "rows.csv", i, group=str(i // rows))
        for i in range(count * rows)
    ]
    clusters = clusters_of([row if is_named else replace(row, group=None) for row in held_out])
    rows_of_documents = documents(count, rows)

    def draw(rng: Rng) -> tuple[np.ndarray, np.ndarray, tuple | None]:
        candidate, champion, _ = rows_of_documents(rng)
        return candidate, champion, clusters

    return draw


def proven(draw: Draw) -> Callable[[Rng], bool]:
    """Return a trial: whether the interval of a proof is above 0."""
    (exact_match,) = load_metrics(["exact_match"])

    def trial(rng: Rng) -> bool:
        adapter, base, clusters = draw(rng)
        rows = [EvalRow((), (1,), (2,), "1", "t", "rows.csv", i) for i in range(len(base))]
        sides = [AnswerSet([str(int(hit)) for hit in side], np.ones(len(base))) for side in (base, adapter)]
        result, _ = compare(exact_match, rows, *sides, seed=int(rng.integers(2**31)), clusters=clusters)
        return result.gain.low > 0

    return trial


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sims", type=int, default=400)
    sims = parser.parse_args().sims
    most = NOMINAL + 2 * math.sqrt(NOMINAL * (1 - NOMINAL) / sims)
    is_above = False
    print("| scenario | error without data.group, % | with it |\n|---|---|---|")
    for number, (count, rows) in enumerate(SIZES):
        for kind, by in (("gate", promoted_by_gain), ("proof", proven)):
            shares = []
            for is_named in (False, True):
                rng, trial = np.random.default_rng([2026, number]), by(customers(count, rows, is_named=is_named))
                shares.append(sum(trial(rng) for _ in range(sims)) / sims)
            is_above |= shares[1] > most
            mark = " **above**" if shares[1] > most else ""
            name = f"{kind}: {count} customers of {rows} rows"
            print(f"| {name} | {100 * shares[0]:.1f} | {100 * shares[1]:.1f}{mark} |", flush=True)
    return int(is_above)


if __name__ == "__main__":
    sys.exit(main())
