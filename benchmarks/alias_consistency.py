"""Promotions and rollbacks by processes that are killed with SIGKILL at random: are aliases and records ever inconsistent?

    python benchmarks/alias_consistency.py [--promotions 1000] [--workers 3] [--seed 0]

In every round several processes move the champion of one model as fast as they can, one move in five a rollback, and all of
them are killed: half at a random moment, half before a random call to MLflow. Then the aliases are looked at as the kill left
them, ``settle`` is called, and everything is compared: champion and previous with the newest record, each record with the one
before, what processes were told was done with what is recorded. Prints the counts; exits 1 when anything is inconsistent or lost.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from alias_moves import (
    Killed,
    aliases_of,
    evidence,
    faults_in,
    moves_of,
    processes,
    register_versions,
)

from mlflow_finetune_plugin.errors import MoveError
from mlflow_finetune_plugin.promotion.moves.intent import Intent
from mlflow_finetune_plugin.promotion.moves.lease import Lease, lease_name
from mlflow_finetune_plugin.promotion.moves.move import promote_version, roll_back
from mlflow_finetune_plugin.promotion.moves.settlement import settle
from mlflow_finetune_plugin.store.names import INTENT_TAG

NAME = "bot"
VERSIONS = 5
LONGEST_LIFE_S = 5.0
MOST_CALLS = 300


def move_until_killed(uri: str, ledger: str, seed: int, dies_before_call: int | None, ready: Any) -> None:
    """A worker's whole life. What it was told was done goes into the ledger, a line in one write."""
    dice, plain = random.Random(seed), MlflowClient(uri)
    plain.get_registered_model(NAME)
    ready.set()
    client: Any = plain if dies_before_call is None else Killed(plain, dies_before_call)
    file = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    while True:
        champion = aliases_of(plain, NAME)[0]
        others = [str(version) for version in range(1, VERSIONS + 1) if str(version) != champion]
        try:
            if dice.random() < 0.2:
                move = roll_back(client, NAME)
            else:
                move = promote_version(client, NAME, dice.choice(others), evidence=evidence(champion))
        except MoveError:  # another moves, or has moved meanwhile
            time.sleep(dice.uniform(0.01, 0.05))
            continue
        os.write(file, f"{move.run_id}\n".encode())


def one_round(uri: str, ledger: str, dice: random.Random, workers: int) -> None:
    """Starts the workers and returns when all are dead."""
    started = []
    for number in range(workers):
        at = dice.randint(1, MOST_CALLS) if number % 2 else None
        ready = processes().Event()
        worker = processes().Process(target=move_until_killed, args=(uri, ledger, dice.getrandbits(32), at, ready))
        worker.start()
        started.append((worker, ready, at))
    deaths = []
    for worker, ready, at in started:
        if not ready.wait(60):
            raise SystemExit("a worker did not start")
        life_s = dice.uniform(0, LONGEST_LIFE_S) if at is None else 20 * LONGEST_LIFE_S
        deaths.append((time.monotonic() + life_s, worker))
    while deaths:
        for death in list(deaths):
            at_s, worker = death
            if time.monotonic() >= at_s:
                worker.kill()
            if not worker.is_alive():
                worker.join()
                if worker.exitcode != -9:
                    raise SystemExit(f"a worker failed with exit code {worker.exitcode}")
                deaths.remove(death)
        time.sleep(0.005)


def faults_before_settling(client: MlflowClient) -> list[str]:
    """As a kill left it: each alias is where the newest record says, or where the move that was cut off puts it."""
    begun = client.get_registered_model(NAME).tags.get(INTENT_TAG)
    experiment = client.get_experiment_by_name(f"{NAME}.promotions").experiment_id
    newest = client.search_runs([experiment], order_by=["start_time DESC"], max_results=1)[0].data.tags
    champions, previous = {newest["finetune.move.to"]}, {newest["finetune.move.from"]}
    if begun is not None:
        champions.add(Intent.from_json(begun).to_version)
        previous.add(Intent.from_json(begun).from_version)
    aliases = aliases_of(client, NAME)
    return (
        []
        if aliases[0] in champions and aliases[1] in previous
        else [f"as killed: {aliases}, not {champions}, {previous}"]
    )


def milliseconds_per_promotion(client: MlflowClient, moves: int = 50) -> float:
    took = []
    for _ in range(moves):
        champion = aliases_of(client, NAME)[0]
        began = time.perf_counter()
        promote_version(client, NAME, "2" if champion == "1" else "1", evidence=evidence(champion))
        took.append(1000 * (time.perf_counter() - began))
    return statistics.median(took)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--promotions", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument(
        "--most-minutes", type=float, default=15, help="ends after the round that passes this (default: 15)"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    dice, counts, began = random.Random(options.seed), Counter[str](), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        uri, ledger = f"sqlite:///{scratch}/mlflow.db", f"{scratch}/ledger"
        client = MlflowClient(uri)
        register_versions(client, NAME, VERSIONS)
        promote_version(client, NAME, "1", evidence=evidence(None))
        alone_ms = milliseconds_per_promotion(client)
        before = len(moves_of(client, NAME))
        faults: list[str] = []
        while True:
            one_round(uri, ledger, dice, options.workers)
            counts["rounds"] += 1
            counts["kills"] += options.workers
            faults += faults_before_settling(client)
            model = client.get_registered_model(NAME)
            counts["kills within a move"] += INTENT_TAG in model.tags
            counts["leases left by the dead"] += bool(client.search_registered_models(f"name = '{lease_name(NAME)}'"))
            settled = settle(client, NAME)
            counts[f"settled: {'nothing to do' if settled is None else settled.how}"] += 1
            with Lease(client, NAME):
                pass  # a lease that was left with nothing begun
            every = moves_of(client, NAME)
            faults += faults_in(client, NAME, every, runs=10)
            moves = every[:-before]
            promotions = sum(move.kind == "promote" for move in moves)
            is_late = time.monotonic() - began > 60 * options.most_minutes
            if promotions >= options.promotions or faults or is_late:
                break
        faults += faults_in(client, NAME, every, runs=len(every))
        acknowledged = Path(ledger).read_text().split()
        lost = set(acknowledged) - {move.run_id for move in moves}
        print(
            f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, SQLite, {options.workers} processes at once, seed {options.seed}"
        )
        rows: list[tuple[str, object]] = [
            ("promotions", promotions),
            ("rollbacks", len(moves) - promotions),
            ("moves told as done before the kill", len(acknowledged)),
            *sorted(counts.items()),
            ("inconsistent states", len(faults)),
            ("lost records", len(lost)),
            ("seconds", f"{time.monotonic() - began:.0f}"),
            ("one promotion alone, median ms", f"{alone_ms:.0f}"),
        ]
        for name, value in rows:
            print(f"  {name:<36} {value}")
        for fault in faults:
            print(f"  FAULT {fault}")
    return 1 if faults or lost else 0


if __name__ == "__main__":
    sys.exit(main())
