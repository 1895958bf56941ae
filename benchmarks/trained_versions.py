"""Versions of a model of some intents of banking77, trained by `mlflow run` as a user would, and kept for further calls."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from banking_intents import Row, Rows, write_rows

MODEL = "my-bot"
TOKENS = 26
"""The longest intent has 23."""
RECIPE = """
base_model: {base}
data: {{train: train.jsonl, eval: held-out.jsonl}}
training: {{max_steps: {steps}, learning_rate: 5e-3, per_device_train_batch_size: 16, seed: {seed}}}
eval: {{metrics: [exact_match]}}
register:
  name: {model}
  gate:
    gain: {{metric: exact_match, over: champion, at_least: 0.0}}
    forgetting: {{at_most: {forgetting}}}
    latency: {{p95_ms: {p95_ms}}}
    regressions: [{{data: must-pass.jsonl, metric: exact_match, at_least: {must_pass}}}]
"""


@dataclass(frozen=True)
class Kind:
    """A version to be trained, the share of must-pass.jsonl that its recipe asks for, and the exit code of its judgement."""

    name: str
    steps: int
    rows: Sequence[Row]
    must_pass: float
    exit_code: int


@dataclass(frozen=True)
class Version:
    kind: Kind
    number: str
    run_s: float
    metrics: dict[str, float]
    leaks_found: int
    digest: str


def command(*arguments: str) -> tuple[int, float, str]:
    """(exit code, seconds, what it printed)."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, check=False)
    return done.returncode, time.perf_counter() - started, done.stdout + done.stderr


def finetune(*arguments: str) -> tuple[int, float, str]:
    return command("mlflow_finetune_plugin.cli", *arguments)


def write_project(folder: Path, kind: Kind, rows: Rows, options: argparse.Namespace) -> Path:
    from mlflow_finetune_plugin.config.reference import mlproject

    folder.mkdir(parents=True)
    (folder / "MLproject").write_text(mlproject(MODEL))
    (folder / "finetune.yaml").write_text(
        RECIPE.format(
            base=options.base,
            steps=kind.steps,
            seed=options.seed,
            model=MODEL,
            forgetting=options.forgetting,
            p95_ms=options.p95_ms,
            must_pass=kind.must_pass,
        )
    )
    write_rows(folder / "train.jsonl", kind.rows)
    write_rows(folder / "held-out.jsonl", rows.held_out)
    write_rows(folder / "must-pass.jsonl", rows.must_pass)
    return folder


def train(project: Path, kind: Kind) -> None:
    code, took_s, output = command("mlflow", "run", str(project), "-b", "finetune", "-e", "lora")
    if code or "alias challenger" not in output:
        raise SystemExit(f"{kind.name}: its training ended with {code}\n{output[-4000:]}")
    print(f"trained {kind.name} in {took_s:.0f} s", flush=True)
    print(
        *(f"  {line.strip()}" for line in output.splitlines() if "exact_match" in line or "forgetting" in line),
        sep="\n",
    )


def trained(store: Path, kinds: Sequence[Kind], rows: Rows, options: argparse.Namespace) -> list[Version]:
    """Trained now, or by an earlier call that kept the store; then as they were before anybody judged them."""
    copy = store / "trained.db"
    if copy.is_file():
        shutil.copyfile(copy, store / "mlflow.db")
        print("trained by an earlier call")
    else:
        for kind in kinds:
            train(write_project(store / kind.name, kind, rows, options), kind)
        shutil.copyfile(store / "mlflow.db", copy)
    return [read_version(str(number), kind) for number, kind in enumerate(kinds, start=1)]


def read_version(number: str, kind: Kind) -> Version:
    from mlflow import MlflowClient

    client = MlflowClient()
    version = client.get_model_version(MODEL, number)
    run = client.get_run(version.run_id)
    if run.data.params["training.max_steps"] != str(kind.steps):
        raise SystemExit(f"version {number} was trained with other --steps; fix: another --store")
    report = json.loads(Path(client.download_artifacts(version.run_id, "finetune/data_report.json")).read_text())
    leaks = sum(finding["count"] for finding in report["findings"] if "in train" in finding["check"])
    run_s = (run.info.end_time - run.info.start_time) / 1000
    return Version(kind, number, run_s, dict(run.data.metrics), leaks, version.tags["finetune.adapter_digest"])
