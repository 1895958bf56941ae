"""A project trained once in peace, and once with its worker killed again and again and the run resumed: are they the same?

    python benchmarks/killed_run.py PROJECT -e lora [--kills 3] [-P NAME=VALUE ...]

Prints, for both runs, adapter digest, loss history digest, attempts and seconds; exits 1 when they differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mlflow import MlflowClient

HISTORIES = ("train/loss", "train/grad_norm", "train/learning_rate")


def command(arguments: argparse.Namespace, *more: str) -> list[str]:
    parameters = [word for parameter in (*arguments.P, *more) for word in ("-P", parameter)]
    base = [
        sys.executable,
        "-m",
        "mlflow_finetune_plugin.cli",
        "run",
        str(arguments.project),
        "-e",
        arguments.entry_point,
    ]
    return base + parameters


def kill_at(step: int, jobs: Path, before: set[Path], process: subprocess.Popen[str]) -> int:
    """kill -9 to the worker of the job that is not in ``before`` once it saved a step beyond ``step``; returns that step."""
    while process.poll() is None:
        for job in set(jobs.iterdir()) - before:
            report = job / "report.jsonl"
            lines = report.read_text().splitlines() if report.exists() else []
            saved = [json.loads(line)["step"] for line in lines if '"event": "checkpoint"' in line]
            if saved and saved[-1] > step:
                os.kill(json.loads((job / "state.json").read_text())["worker"]["pid"], signal.SIGKILL)
                process.communicate()
                return int(saved[-1])
        time.sleep(0.05)
    raise SystemExit(f"the run ended before it saved a step beyond {step}:\n{process.communicate()[0]}")


def described(client: MlflowClient, run_id: str) -> dict[str, str]:
    run = client.get_run(run_id)
    points = [[m.step, m.value] for key in HISTORIES for m in client.get_metric_history(run_id, key)]
    return {
        "status": run.info.status,
        "adapter": run.data.tags["finetune.adapter_digest"][:16],
        "histories": hashlib.sha256(json.dumps(points).encode()).hexdigest()[:16],
    }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("project", type=lambda text: Path(text).resolve())
    parser.add_argument("-e", "--entry-point", required=True)
    parser.add_argument("-P", action="append", default=[])
    parser.add_argument("--kills", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
            "MLFLOW_FINETUNE_HOME": str(folder / "home"),
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        client = MlflowClient()
        subprocess.run(command(arguments), cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        (whole,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
        step, resumed, killed = 0, [], []
        jobs = folder / "home" / "jobs"
        for _ in range(arguments.kills):
            before = set(jobs.iterdir())
            process = subprocess.Popen(
                command(arguments, *resumed),
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            step = kill_at(step, jobs, before, process)
            killed.append(step)
            (run,) = [
                run
                for run in client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
                if run.info.run_id != whole.info.run_id
            ]
            while client.get_run(run.info.run_id).info.status == "RUNNING":
                time.sleep(0.2)
            resumed = [f"resume={run.info.run_id}"]
        subprocess.run(
            command(arguments, *resumed), cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
        )
        left_alone, interrupted = described(client, whole.info.run_id), described(client, run.info.run_id)
    print(f"left alone         {left_alone}\nkilled after steps {killed} {interrupted}")
    return int(left_alone != interrupted)


if __name__ == "__main__":
    sys.exit(main())
