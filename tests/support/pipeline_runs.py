"""The pipeline in this process, with a real MLflow store, and its report carried over as the supervisor does."""

from __future__ import annotations

import functools
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mlflow import MlflowClient
from tiny_bases import write_rows

from mlflow_finetune_plugin import pipeline
from mlflow_finetune_plugin.config.run_config import RunConfig
from mlflow_finetune_plugin.jobs.report import Report, ReportReader
from mlflow_finetune_plugin.jobs.run_record import RunRecord
from mlflow_finetune_plugin.planning import forecast
from mlflow_finetune_plugin.stages.context import RunContext

forecast.device_rates = functools.cache(forecast.device_rates)
"""The speed of this machine is measured once for all runs of a process, which takes a third of a second, and not for each."""


@dataclass
class Ran:
    """A pipeline that ran: what it returned, what it said, what MLflow knows."""

    folder: Path
    config: RunConfig
    client: MlflowClient
    tracking_uri: str
    run_id: str
    result: dict[str, Any]

    @property
    def run(self):  # type: ignore[no-untyped-def]
        return self.client.get_run(self.run_id)

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in all_events(self.folder) if event["event"] == kind]

    def stages(self) -> list[str]:
        return [event["name"] for event in self.events("stage")]

    def artifact(self, path: str) -> Path:
        return Path(self.client.download_artifacts(self.run_id, path))

    def reload_error(self) -> float:
        return self.run.data.metrics["reload/max_nats"]


def all_events(folder: Path) -> list[dict[str, Any]]:
    return list(ReportReader(folder / "report.jsonl").new_events())


def config_for(folder: Path, base: str | Path, **sections: Any) -> RunConfig:
    """A short run on ``write_rows``; ``sections`` add to or replace the defaults."""
    train, held_out = write_rows(folder / "data")
    values: dict[str, Any] = {
        "entry_point": "lora",
        "adaptation": "lora",
        "objective": "sft",
        "base_model": {"name": str(base)},
        "data": {"train": [{"path": str(train)}], "eval": [{"path": str(held_out)}]},
        "options": {"rank": 4},
        "training": {"max_steps": 3, "learning_rate": 2e-3, "per_device_train_batch_size": 8},
        "eval": {"metrics": ["exact_match", "perplexity"], "max_new_tokens": 4, "forgetting": False},
        "register": {"name": "bot"},
    }
    for name, section in sections.items():
        default = values.get(name)
        values[name] = {**default, **section} if isinstance(default, dict) and isinstance(section, dict) else section
    return RunConfig.model_validate(values)


def run_pipeline(folder: Path, empty_store: Path, config: RunConfig, *, store: Path | None = None) -> Ran:
    """Runs it. ``store`` is an MLflow database of an earlier run, to see what a second one changes."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    if store is None:
        store = folder / "mlflow.db"
        shutil.copy(empty_store, store)
    uri = f"sqlite:///{store}"
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("tests")
    experiment_id = (
        experiment.experiment_id
        if experiment
        else client.create_experiment("tests", artifact_location=str(store.parent / "artifacts"))
    )
    run_id = client.create_run(experiment_id).info.run_id
    (folder / "work").mkdir()
    report = Report(folder / "report.jsonl")
    with relayed(folder, RunRecord(client, run_id, attempt=1)):
        result = pipeline.run(config, RunContext(run_id, uri, folder / "work"), report)
    return Ran(folder, config, client, uri, run_id, result)


@contextmanager
def relayed(folder: Path, record: RunRecord) -> Iterator[None]:
    """Copy the report to MLflow while the pipeline runs, as the supervisor does, and the rest of it at the end."""
    reader, ended = ReportReader(folder / "report.jsonl"), threading.Event()

    def relay() -> None:
        while True:
            is_last = ended.wait(0.1)
            for event in reader.new_events():
                record.apply(event)
            if is_last:
                return

    with ThreadPoolExecutor(1) as pool:
        relaying = pool.submit(relay)
        try:
            yield
        finally:
            ended.set()
    relaying.result()
