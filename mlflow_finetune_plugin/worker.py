"""The training process: ``python -m mlflow_finetune_plugin.worker JOB_FOLDER [RANK]``.

It starts before the MLflow run exists and uses that time for imports. It writes to the job's report, and ends with an
``error`` or ``result`` event and an exit code, from which the supervisor decides the status. A process with a ``RANK``
above 0 only trains, together with the process that has none.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.config.evaluation import EvaluationConfig
from mlflow_finetune_plugin.config.run_config import RunConfig
from mlflow_finetune_plugin.errors import FinetuneError
from mlflow_finetune_plugin.jobs.folder import JobFolder
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.jobs.supervisor import DISK_FULL_EXIT
from mlflow_finetune_plugin.jobs.workers import PEER_LOST_EXIT, done_name
from mlflow_finetune_plugin.startup import ask_for_huge_pages, quiet_libraries, without

_DISK_FULL_ERRORS = (28, 122)  # ENOSPC, EDQUOT


def main(argv: list[str] | None = None) -> int:
    """Runs one job, or its share of one. Returns 0 when the report holds a result, or the share is done."""
    path, *more = sys.argv[1:] if argv is None else argv
    folder, rank = JobFolder(Path(path)), int(more[0]) if more else 0
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stdout)
    ask_for_huge_pages()
    quiet_libraries(owns_process=True)
    try:
        report = Report(folder.report)
        try:
            if rank:
                _share(folder, rank)
            else:
                _work(folder, report)
        except Exception as error:
            if _is_lost_peer(error):
                print(f"process {rank}: {type(error).__name__}: {error}", flush=True)
                return PEER_LOST_EXIT
            trace = traceback.format_exc()
            print(trace, flush=True)
            report.error(reason_of(error), trace)
            return 1
    except OSError as error:
        if error.errno in _DISK_FULL_ERRORS:
            return DISK_FULL_EXIT
        raise
    return 0


def _is_lost_peer(error: Exception) -> bool:
    """Return whether another process ended first. That one has reported the reason, or its exit code shows it."""
    from mlflow_finetune_plugin.training.processes import PeerLostError

    return isinstance(error, PeerLostError)


def _share(folder: JobFolder, rank: int) -> None:
    _leave_out_bitsandbytes(RunConfig.model_validate(folder.read("config")))
    with without("scipy", "sklearn"):
        from mlflow_finetune_plugin.stages import followers

    followers.follow(folder, rank)
    folder.write(done_name(rank), {})


def _work(folder: JobFolder, report: Report) -> None:
    job = folder.read("job") or {}
    if job.get("kind") == "evaluate":
        _evaluate(folder, job, report)
        return
    if job.get("kind") == "promote":
        _promote(folder, job, report)
        return
    if job.get("kind") == "watch":
        _watch(folder, job, report)
        return
    config = RunConfig.model_validate(folder.read("config"))
    _leave_out_bitsandbytes(config)
    with without("scipy", "sklearn"):
        from mlflow_finetune_plugin import pipeline
        from mlflow_finetune_plugin.stages.context import (
            RunContext,  # torch and all that is heavy, while the command creates the run
        )
    gc.freeze()  # later collections skip what is imported; scanning it would take 0.4 s each time

    context = RunContext(
        run_id=_run_id(folder),
        tracking_uri=job["tracking_uri"],
        folder=folder.work,
        processes=len(job.get("processes") or [{}]),
    )
    report.result(**pipeline.run(config, context, report))


def _evaluate(folder: JobFolder, job: dict[str, Any], report: Report) -> None:
    config = EvaluationConfig.model_validate(folder.read("config"))
    with without("sklearn"):
        from mlflow_finetune_plugin.stages import evaluate
        from mlflow_finetune_plugin.stages.context import RunContext
    gc.freeze()

    context = RunContext(run_id=_run_id(folder), tracking_uri=job["tracking_uri"], folder=folder.work)
    report.result(**evaluate.run(config, context, report))


def _promote(folder: JobFolder, job: dict[str, Any], report: Report) -> None:
    import mlflow
    from mlflow import MlflowClient

    from mlflow_finetune_plugin.promotion import request
    from mlflow_finetune_plugin.promotion.config import PromotionConfig

    config = PromotionConfig.model_validate(folder.read("config"))
    _run_id(folder)  # it exists before anything is moved
    mlflow.set_tracking_uri(job["tracking_uri"])
    report.result(**request.run(config, MlflowClient(), folder.work, report))


def _watch(folder: JobFolder, job: dict[str, Any], report: Report) -> None:
    import mlflow
    from mlflow import MlflowClient

    from mlflow_finetune_plugin.watch import request
    from mlflow_finetune_plugin.watch.config import WatchConfig

    config = WatchConfig.model_validate(folder.read("config"))
    _run_id(folder)  # it exists before anything is moved
    mlflow.set_tracking_uri(job["tracking_uri"])
    report.result(**request.run(config, MlflowClient(), folder.work, report))


def _leave_out_bitsandbytes(config: RunConfig) -> None:
    """Prevent PEFT from importing bitsandbytes if nothing is quantised, because the import costs 2 to 3 s of every
    start.
    """
    if config.start_from is not None:  # the version decides whether the base is quantised
        return
    if config.base_model.quantization is None and not config.training.optim.endswith(("8bit", "32bit")):
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # Python's own way to say: not importable


def _run_id(folder: JobFolder) -> str:
    """Return the MLflow run's id. The supervisor ends this process if the run is never created."""
    while True:
        run = folder.read("run")
        if run is not None:
            os.environ["MLFLOW_EXPERIMENT_ID"] = run["experiment_id"]  # what MLflow logs without a run lands beside it
            return str(run["run_id"])
        time.sleep(0.02)


def reason_of(error: BaseException) -> str:
    """Return the reason why a training ended in one line, with the fix if there is one."""
    import torch

    text = " ".join(str(error).split())[:1000]
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"out of GPU memory; fix: lower training.per_device_train_batch_size or training.max_length ({text[:300]})"
        )
    if isinstance(error, MemoryError) or "can't allocate memory" in text or "Cannot allocate memory" in text:
        return f"out of memory; fix: lower training.per_device_train_batch_size or training.max_length ({text[:300]})"
    if isinstance(error, OSError) and error.errno in _DISK_FULL_ERRORS:
        return (
            f"disk full: {error.filename or os.environ.get('MLFLOW_FINETUNE_HOME', 'the job folder')}; fix: free space"
        )
    if isinstance(error, FinetuneError):
        return text
    return f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    sys.exit(main())
