"""Jobs whose supervisor died before the run had a final status, and the folders of old jobs."""

from __future__ import annotations

import os
import shutil
import time

from mlflow_finetune_plugin.jobs.folder import JobFolder, supervisor_alive
from mlflow_finetune_plugin.jobs.supervisor import start_supervisor

KEEP_FOLDERS_S = 7 * 24 * 3600.0


def orphans() -> list[JobFolder]:
    """Return this user's jobs whose run has no final status in MLflow and whose supervisor does not run on this host."""
    return [folder for folder in JobFolder.all() if is_unfinished(folder) and not supervisor_alive(folder)]


def is_unfinished(folder: JobFolder) -> bool:
    """Return whether MLflow does not have the final status of the job's run yet."""
    outcome = folder.read("outcome")
    return folder.read("run") is not None and (outcome is None or not outcome["recorded"])


def adopt_orphans() -> list[JobFolder]:
    """Give every orphan a new supervisor, without waiting. Every new run does this for the runs before it."""
    abandoned = orphans()
    for folder in abandoned:
        start_supervisor(folder, adopt=True)
    return abandoned


def remove_old_folders(*, now_s: float) -> int:
    """Remove job folders that have not changed for a week and whose run has ended or never existed. Return their
    number.
    """
    old = [
        folder
        for folder in JobFolder.all()
        if now_s - _changed_s(folder) > KEEP_FOLDERS_S and not is_unfinished(folder) and not supervisor_alive(folder)
    ]
    for folder in old:
        shutil.rmtree(folder.path, ignore_errors=True)
    return len(old)


def _changed_s(folder: JobFolder) -> float:
    """Return when the folder changed last; now, if another command has just removed it."""
    try:
        return os.path.getmtime(folder.path)
    except FileNotFoundError:
        return time.time()
