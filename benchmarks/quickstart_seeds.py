"""The quickstart over seeds and learning rates through ``mlflow run``: base, adapter, interval, forgetting, wall time.

python benchmarks/quickstart_seeds.py [--seeds 0 1 2 3 4] [--learning-rates auto]
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mlflow import MlflowClient

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "quickstart"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--learning-rates", nargs="+", default=["auto"])
    arguments = parser.parse_args()
    print(
        "| learning rate | seed | base | adapter | gain (95 % CI) | forgetting, nats per token | train s | whole command s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for rate, seed in itertools.product(arguments.learning_rates, arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            store = f"sqlite:///{folder}/mlflow.db"
            environment = {**os.environ, "MLFLOW_TRACKING_URI": store, "MLFLOW_FINETUNE_HOME": f"{folder}/home"}
            command = [
                sys.executable,
                "-m",
                "mlflow",
                "run",
                str(RECIPE),
                "-b",
                "finetune",
                "-e",
                "lora",
                "-P",
                f"seed={seed}",
                "-P",
                f"learning_rate={rate}",
            ]
            started = time.monotonic()
            subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
            wall = time.monotonic() - started
            client = MlflowClient(store)
            m = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])[
                0
            ].data.metrics
        print(
            f"| {rate} | {seed} | {m['eval/base/exact_match']:.3f} | {m['eval/adapter/exact_match']:.3f} | "
            f"{m['eval/gain/exact_match']:+.3f} ({m['eval/gain_low/exact_match']:+.3f}..{m['eval/gain_high/exact_match']:+.3f}) | "
            f"{m['forgetting/nats_per_token']:+.3f} | {m['train/seconds']:.0f} | {wall:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
