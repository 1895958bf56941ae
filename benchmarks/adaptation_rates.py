"""Which learning rate suits which adaptation: the quickstart's recipe through the pipeline, once per rate and seed.

python benchmarks/adaptation_rates.py bottleneck 5e-4 1e-3 2e-3 [--seeds 0 1] [-P reduction_factor=16]
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import tempfile
from pathlib import Path

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


def run(folder: Path, parameters: dict[str, str], recipe: str = "quickstart") -> dict[str, float]:
    """Run a recipe. Returns the last value of every metric, and the learning rate."""
    from mlflow import MlflowClient

    from mlflow_finetune_plugin import pipeline
    from mlflow_finetune_plugin.config.absolute_paths import resolve_paths
    from mlflow_finetune_plugin.config.run_config import load_config
    from mlflow_finetune_plugin.jobs.report import Report, ReportReader
    from mlflow_finetune_plugin.stages.context import RunContext

    project = RECIPES / recipe
    config = resolve_paths(load_config(project, "lora", parameters, caller=folder), project)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(uri)
    experiment = client.create_experiment("rates", artifact_location=str(folder / "artifacts"))
    (folder / "work").mkdir()
    report = Report(folder / "report.jsonl")
    run_id = client.create_run(experiment).info.run_id
    pipeline.run(config.model_copy(update={"register_as": None}), RunContext(run_id, uri, folder / "work"), report)
    values: dict[str, float] = {}
    for event in ReportReader(folder / "report.jsonl").new_events():
        if event["event"] == "metrics":
            values |= event["values"]
        elif event["event"] == "params":
            values["learning_rate"] = float(event["values"]["training.learning_rate"])
    return values


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("adaptation")
    parser.add_argument("rates", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("-P", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    more = dict(parameter.split("=", 1) for parameter in arguments.P)
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_OFFLINE": "1"}
    print(
        "| adaptation | learning rate | seed | adapter | gain (95 % CI) | forgetting, nats per token | last loss | train s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for rate, seed in itertools.product(arguments.rates, arguments.seeds):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
            m = run(
                Path(folder), {"adaptation": arguments.adaptation, "learning_rate": rate, "seed": str(seed), **more}
            )
        low, high = m["eval/gain_low/exact_match"], m["eval/gain_high/exact_match"]
        print(
            f"| {arguments.adaptation} | {rate} | {seed} | {m['eval/adapter/exact_match']:.3f} | "
            f"{m['eval/gain/exact_match']:+.3f} ({low:+.3f}..{high:+.3f}) | {m['forgetting/nats_per_token']:+.3f} | "
            f"{m['train/loss']:.4f} | {m['train/seconds']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
