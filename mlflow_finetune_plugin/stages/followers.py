"""The processes of a training beside the first: each waits for the first one's task, trains its share, and ends.

The first process prepares the data and settles the plan, however long that takes. All processes load the same base and
apply the same adaptation with the same seed, and compare the result before the first step.
"""

from __future__ import annotations

import json
import os
import pickle
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import torch

from mlflow_finetune_plugin.base_models import loading
from mlflow_finetune_plugin.base_models.loading import BaseModel
from mlflow_finetune_plugin.config.run_config import RunConfig
from mlflow_finetune_plugin.data.preparation import PreparedData
from mlflow_finetune_plugin.jobs.folder import JobFolder, ProcessId
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.logged_models.start_version import load_start
from mlflow_finetune_plugin.methods import Method, load_method
from mlflow_finetune_plugin.planning.plan import Plan
from mlflow_finetune_plugin.training.checkpoints import Checkpoint
from mlflow_finetune_plugin.training.processes import PeerLostError, joined
from mlflow_finetune_plugin.training.trainer import train

_TASK = "task.json"
_ROWS = "task.rows"
_MEETING_PLACE = "processes"


@dataclass(frozen=True)
class Task:
    """A settled training, as another process reads it."""

    config: RunConfig
    base: BaseModel
    method: Method
    train_rows: datasets.Dataset
    eval_rows: datasets.Dataset
    checkpoint: Checkpoint | None
    processes: int
    threads: int
    start: Path | None
    """The adapter that the training continues."""


def hand_over(plan: Plan, data: PreparedData, checkpoint: Checkpoint | None, folder: Path) -> None:
    """Write the task, so that the other processes begin. The rows stay in memory-mapped files; only their order is written."""
    with (folder / _ROWS).open("wb") as stream:
        pickle.dump((data.train, data.validation), stream)
    base = {**vars(plan.base), "folder": str(plan.base.folder), "dtype": str(plan.base.dtype).removeprefix("torch.")}
    task = {
        "config": plan.config.model_dump(mode="json", by_alias=True),
        "base": base,
        "adaptation_options": plan.adaptation_options.model_dump(mode="json"),
        "checkpoint": {"folder": str(checkpoint.folder), "step": checkpoint.step} if checkpoint else None,
        "processes": plan.processes,
        "threads": plan.threads.count,
        "start": str(plan.start.adapter) if plan.start else None,
    }
    draft = folder / f"{_TASK}.part"
    draft.write_text(json.dumps(task), encoding="utf-8")
    draft.replace(folder / _TASK)


def meeting_place(folder: Path) -> Path:
    """Return the file through which the processes of this job find each other."""
    return folder / _MEETING_PLACE


def follow(job: JobFolder, rank: int) -> None:
    """Run a process that is not the first, from the task to its end. Raises PeerLostError when the first has ended."""
    task = _read(_awaited(job))
    scratch = job.work / f"process-{rank}"
    torch.set_num_threads(task.threads)
    scratch.mkdir(exist_ok=True)
    model = task.method.adaptation.apply(
        loading.load_model(task.base, task.method.objective.MODEL, seed=task.config.training.seed),
        task.method.adaptation_options,
        seed=task.config.training.seed,
        folder=scratch,
    )
    if task.start is not None:
        load_start(model, task.start)
    with joined(rank, task.processes, meeting_place(job.work)) as processes:
        train(
            model,
            loading.load_tokenizer(task.base),
            train_rows=task.train_rows,
            eval_rows=task.eval_rows,
            settings=task.config.training,
            method=task.method,
            folder=scratch,
            report=Report(Path(os.devnull)),
            checkpoint=task.checkpoint,
            processes=processes,
        )


def _awaited(job: JobFolder) -> Path:
    """Wait for the task's file, and return it. Raises PeerLostError when the first process ends before it has written it."""
    path = job.work / _TASK
    while not path.exists():
        first = ProcessId.from_json((job.read("state") or {}).get("worker"))
        if first is not None and not first.is_alive() and not path.exists():
            raise PeerLostError("the first process ended before training began")
        time.sleep(0.05)
    return path


def _read(path: Path) -> Task:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    config = RunConfig.model_validate(values["config"])
    adaptation = load_method("adaptation", config.adaptation)
    base = values["base"]
    with path.with_name(_ROWS).open("rb") as stream:
        train_rows, eval_rows = pickle.load(stream)  # of this job's own folder, which only this user can write to
    checkpoint = values["checkpoint"]
    return Task(
        config=config,
        base=BaseModel(**{**base, "folder": Path(base["folder"]), "dtype": getattr(torch, base["dtype"])}),
        method=Method(
            adaptation,
            adaptation.Options.model_validate(values["adaptation_options"]),
            load_method("objective", config.objective),
            config.objective_options(),
        ),
        train_rows=train_rows,
        eval_rows=eval_rows,
        checkpoint=Checkpoint(Path(checkpoint["folder"]), checkpoint["step"], {}) if checkpoint else None,
        processes=values["processes"],
        threads=values["threads"],
        start=Path(values["start"]) if values["start"] else None,
    )


def alone(plan: Plan) -> Plan:
    """Return the plan for one process, with as many rows a step: the one device accumulates more micro-batches."""
    training = plan.config.training
    steps = int(training.gradient_accumulation_steps) * plan.processes
    config = plan.config.model_copy(
        update={"training": training.model_copy(update={"gradient_accumulation_steps": steps})}
    )
    return replace(plan, config=config, processes=1)
