"""The training process: ``python -m mlflow_finetune_plugin.worker JOB_FOLDER``.

Starts before the MLflow run exists and spends that time importing. Everything it says goes to the job's report; how it
ends is told by an ``error`` or ``result`` event and the exit code, and judged by the supervisor.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.allocation import hold_large_blocks_apart
from mlflow_finetune_plugin.config import EvaluationConfig, RunConfig
from mlflow_finetune_plugin.errors import FinetuneError
from mlflow_finetune_plugin.jobs import JobFolder
from mlflow_finetune_plugin.report import Report
from mlflow_finetune_plugin.supervisor import DISK_FULL_EXIT

_DISK_FULL_ERRORS = (28, 122)  # ENOSPC, EDQUOT


def main(argv: list[str] | None = None) -> int:
    """Runs one job. Returns 0 when the report holds a result."""
    folder = JobFolder(Path((sys.argv[1:] if argv is None else argv)[0]))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stdout)
    try:
        report = Report(folder.report)
        try:
            _work(folder, report)
        except Exception as error:
            trace = traceback.format_exc()
            print(trace, flush=True)
            report.error(reason_of(error), trace)
            return 1
    except OSError as error:
        if error.errno in _DISK_FULL_ERRORS:
            return DISK_FULL_EXIT
        raise
    return 0


def _work(folder: JobFolder, report: Report) -> None:
    job = folder.read("job") or {}
    if job.get("kind") == "evaluate":
        _evaluate(folder, job, report)
        return
    config = RunConfig.model_validate(folder.read("config"))
    _leave_out_bitsandbytes(config)
    hold_large_blocks_apart()
    from mlflow_finetune_plugin import pipeline  # torch and all that is heavy, while the command creates the run

    place = pipeline.Place(run_id=_run_id(folder), tracking_uri=job["tracking_uri"], folder=folder.work)
    report.result(**pipeline.run(config, place, report))


def _evaluate(folder: JobFolder, job: dict[str, Any], report: Report) -> None:
    config = EvaluationConfig.model_validate(folder.read("config"))
    from mlflow_finetune_plugin import evaluate, pipeline

    place = pipeline.Place(run_id=_run_id(folder), tracking_uri=job["tracking_uri"], folder=folder.work)
    report.result(**evaluate.run(config, place, report))


def _leave_out_bitsandbytes(config: RunConfig) -> None:
    """PEFT imports bitsandbytes because it is installed; where nothing is quantised that costs 2 to 3 s of every start."""
    if config.base_model.quantization is None and not config.training.optim.endswith(("8bit", "32bit")):
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # Python's own way to say: not importable


def _run_id(folder: JobFolder) -> str:
    """The MLflow run's id; the supervisor ends this process if the run is never created."""
    while True:
        run = folder.read("run")
        if run is not None:
            return str(run["run_id"])
        time.sleep(0.02)


def reason_of(error: BaseException) -> str:
    """One line that says what ended a training, with the fix where there is one."""
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
