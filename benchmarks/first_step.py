"""How long until the first optimiser step: ``mlflow run -b finetune`` against a bare TRL script that reports to MLflow.

    python benchmarks/first_step.py [--runs 7]

Both start as fresh processes on an existing MLflow store, in turn (A B A B ...), and do the quickstart's job: same base,
rows, rank, batch. The clock starts before the process does. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "quickstart"
EMBEDDED = ROOT / "mlflow_finetune_plugin" / "embedded_base"


def ours(folder: Path, environment: dict[str, str]) -> float:
    home = folder / "home"
    shutil.rmtree(home, ignore_errors=True)
    started = time.time()
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "run", str(RECIPE), "-b", "finetune", "-e", "lora", "-P", "max_steps=2"],
        cwd=folder,
        env={**environment, "MLFLOW_FINETUNE_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    process.wait()
    (report,) = home.glob("jobs/*/report.jsonl")
    events = [json.loads(line) for line in report.read_text().splitlines()]
    return next(event["time_ms"] for event in events if event["event"] == "first_step") / 1000 - started


def bare(folder: Path, environment: dict[str, str]) -> float:
    out = folder / "bare"
    shutil.rmtree(out, ignore_errors=True)
    started = time.time()
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "bare_trl.py"),
        str(EMBEDDED),
        str(RECIPE / "data/train.jsonl"),
    ]
    subprocess.run(
        [*command, str(out), "--steps", "2"],
        cwd=folder,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return float((out / "first_step").read_text()) - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {
            **os.environ,
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
            "HF_HUB_OFFLINE": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        (
            ours(folder, environment),
            bare(folder, environment),
        )  # one warm-up each: byte code, file cache, the store's tables
        pairs = [(ours(folder, environment), bare(folder, environment)) for _ in range(runs)]
    print(f"{runs} pairs, seconds from process start to the end of the first optimiser step\n")
    print("| | min | median | max |\n|---|---|---|---|")
    for label, values in (
        ("mlflow run -b finetune", [a for a, _ in pairs]),
        ("bare TRL script", [b for _, b in pairs]),
        ("ratio, pair by pair", [a / b for a, b in pairs]),
    ):
        print(f"| {label} | {min(values):.2f} | {statistics.median(values):.2f} | {max(values):.2f} |")


if __name__ == "__main__":
    main()
