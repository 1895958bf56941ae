"""A training by the real command that is killed after a checkpoint, and what its run recorded."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from conftest import Workplace, pids, wait_for

ARGUMENTS = {
    "base_model": "embedded",
    "data": "train.jsonl",
    "eval_data": "test.jsonl",
    "max_steps": 24,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "rank": 4,
    "dropout": 0.1,
    "learning_rate": 1e-3,
    "logging_steps": 3,
    "eval_steps": 6,
    "save_steps": 4,
    "max_rows": 8,
    "max_new_tokens": 2,
    "metrics": "exact_match",
    "forgetting": "false",
}


def arguments(**more: object) -> list[str]:
    values = {**ARGUMENTS, **more}
    return ["project", "-e", "lora", *(word for name, value in values.items() for word in ("-P", f"{name}={value}"))]


def kill_after(workplace: Workplace, step: int, before: set[Path], process) -> None:  # type: ignore[no-untyped-def]
    """kill -9 to the worker of the job that is not in ``before``, once it has saved this step."""

    def saved() -> Path | None:
        jobs = workplace.home / "jobs"
        for job in set(jobs.iterdir()) - before if jobs.is_dir() else ():
            report = job / "report.jsonl"
            lines = report.read_text().splitlines() if report.exists() else []
            events = [json.loads(line) for line in lines if '"checkpoint"' in line]
            if any(event["event"] == "checkpoint" and event["step"] >= step for event in events):
                return job
        assert process.poll() is None, process.stdout.read()
        return None

    os.kill(pids(wait_for(saved, 240, f"a checkpoint of step {step}"))["worker"], signal.SIGKILL)
    process.communicate(timeout=90)


def history(workplace: Workplace, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in workplace.client().get_metric_history(run_id, key)]


def adapter_digests(workplace: Workplace, run_id: str) -> dict[str, set[str]]:
    """Of the run's model and of its evaluated checkpoints."""
    client = workplace.client()
    experiment_id = client.get_run(run_id).info.experiment_id
    models = client.search_logged_models([experiment_id], filter_string=f"source_run_id = '{run_id}'")
    names = {model.name for model in models}
    return {name: {model.tags["finetune.adapter_digest"] for model in models if model.name == name} for name in names}
