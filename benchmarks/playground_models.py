"""The two models that people are asked about: the quickstart's, and one of some intents of banking77, each against its base."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from banking_intents import banking_rows, write_rows

from mlflow_finetune_plugin.config.reference import mlproject

QUICKSTART = Path(__file__).resolve().parents[1] / "recipes" / "quickstart"
GATE = """
  gate:
    gain: {metric: exact_match, over: base, at_least: 0.0}
    votes: {unit: vote, minimum: 10, per_voter: 5, required: true}
"""
"""Held until votes decide. Counted are votes, not voters: three logins are no sample of people."""
_BANKING77 = """
base_model: {base}
data: {{train: train.jsonl, eval: held-out.jsonl}}
training: {{max_steps: {steps}, learning_rate: 5e-3, per_device_train_batch_size: 16, seed: 0}}
eval: {{metrics: [exact_match], max_new_tokens: 26}}
register:
  name: banking77
"""


@dataclass(frozen=True)
class Taught:
    """A registered model, and the longest answer that it was taught, in tokens."""

    name: str
    longest: int


MODELS = (Taught("quickstart", 8), Taught("banking77", 26))


def quickstart_project(folder: Path) -> Path:
    """The recipe as it is, and a gate that asks people."""
    shutil.copytree(QUICKSTART, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__", "gpu"))
    recipe = folder / "finetune.yaml"
    text = recipe.read_text(encoding="utf-8").replace(
        "register: {name: quickstart}", "register:\n  name: quickstart" + GATE
    )
    recipe.write_text(text, encoding="utf-8")
    return folder


def banking77_project(source: Path, base: Path, folder: Path, steps: int) -> Path:
    folder.mkdir(parents=True)
    rows = banking_rows(source)
    (folder / "MLproject").write_text(mlproject("banking77"), encoding="utf-8")
    (folder / "finetune.yaml").write_text(_BANKING77.format(base=base, steps=steps).rstrip() + GATE, encoding="utf-8")
    write_rows(folder / "train.jsonl", rows.train)
    write_rows(folder / "held-out.jsonl", rows.held_out)
    return folder


def train(project: Path, store: Path) -> None:
    """By `mlflow run`, as a user would; the environment says where MLflow is."""
    mlflow = Path(sys.executable).parent / "mlflow"
    started = time.perf_counter()
    command = [str(mlflow), "run", str(project), "-b", "finetune", "-e", "lora"]
    done = subprocess.run(command, cwd=store, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    if done.returncode or "alias challenger" not in output:
        raise SystemExit(f"{project.name}: its training ended with {done.returncode}\n{output[-4000:]}")
    print(f"trained {project.name} in {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    lines = (line.strip() for line in output.splitlines() if "exact_match" in line or "alias challenger" in line)
    print(*(f"  {line}" for line in lines), sep="\n", file=sys.stderr, flush=True)


def trained(store: Path, names: list[str], banking77: Path | None, base: Path | None, steps: int) -> None:
    """Trains what an earlier call has not left in ``store``."""
    for name in names:
        if (store / f"{name}.trained").exists():
            continue
        shutil.rmtree(store / name, ignore_errors=True)
        if name == "quickstart":
            project = quickstart_project(store / name)
        elif banking77 is None or base is None:
            raise SystemExit("banking77 is asked for; fix: --banking77 FOLDER --base FOLDER")
        else:
            project = banking77_project(banking77.resolve(), base.resolve(), store / name, steps)
        train(project, store)
        (store / f"{name}.trained").touch()


def references(held_out: Path) -> dict[str, str]:
    """The wanted answer by what is asked."""
    rows = map(json.loads, held_out.read_text(encoding="utf-8").splitlines())
    return {plain(row["prompt"]): row["completion"].strip() for row in rows}


def plain(text: str) -> str:
    """As a browser shows it: one space where there are several."""
    return " ".join(text.split())
