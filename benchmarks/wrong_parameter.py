"""How soon a wrong parameter is answered: ``mlflow run -b finetune`` against bare ``mlflow run`` refusing an entry point.

    python benchmarks/wrong_parameter.py [--runs 9]

Both are whole processes, in turn; prints both and the difference pair by pair, in milliseconds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "quickstart"


def seconds(arguments: list[str], folder: str, environment: dict[str, str]) -> float:
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-m", "mlflow", "run", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert result.returncode == 1, result.stderr
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    ours = [str(RECIPE), "-b", "finetune", "-e", "lora", "-P", "learning_rat=1e-4"]
    bare = [str(RECIPE), "-e", "no-such-entry-point", "--env-manager", "local"]
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "MLFLOW_FINETUNE_HOME": f"{folder}/home",
        }
        seconds(ours, folder, environment), seconds(bare, folder, environment)
        pairs = [(seconds(ours, folder, environment), seconds(bare, folder, environment)) for _ in range(runs)]
    print(f"{runs} pairs, milliseconds of the whole command\n\n| | min | median | max |\n|---|---|---|---|")
    for label, values in (
        ("wrong parameter, -b finetune", [a for a, _ in pairs]),
        ("wrong entry point, bare mlflow run", [b for _, b in pairs]),
        ("difference, pair by pair", [a - b for a, b in pairs]),
    ):
        print(
            f"| {label} | {1000 * min(values):.0f} | {1000 * statistics.median(values):.0f} | {1000 * max(values):.0f} |"
        )


if __name__ == "__main__":
    main()
