"""Is this machine fit to train, and did runs die here unnoticed?"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from mlflow_finetune_plugin.jobs.folder import JobFolder, jobs_home, supervisor_alive
from mlflow_finetune_plugin.jobs.supervisor import start_supervisor

TESTED = {
    "mlflow": "3.17",
    "torch": "2.13",
    "transformers": "5.19",
    "peft": "0.21",
    "trl": "1.16",
    "datasets": "5.2",
    "evaluate": "0.4",
}
KEEP_FOLDERS_S = 7 * 24 * 3600.0
_REAP_PATIENCE_S = 60.0
FLOORS = (
    ("vllm", (0, 33), "GHSA-5r3c-5x4v-8gjh and older"),
    ("gradio", (6, 22), "CVE-2026-59806, CVE-2026-49119 and older"),
)
"""Optional packages, the least release without known advisories, and those of the releases before it."""


@dataclass(frozen=True)
class HealthCheck:
    """One line of the examination."""

    is_good: bool
    text: str


def examine(*, reap: bool) -> Iterator[HealthCheck]:
    """Findings, as they are made. With ``reap`` the runs that died are ended."""
    yield from _packages()
    yield _device()
    yield from _jobs(reap=reap)
    yield from _tracking(reap=reap)


def _packages() -> Iterator[HealthCheck]:
    for name, tested in TESTED.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield HealthCheck(False, f"{name} is not installed; fix: pip install 'mlflow-finetune[train]'")
            continue
        same = found == tested or found.startswith(f"{tested}.")
        yield HealthCheck(True, f"{name} {found}" + ("" if same else f" (tested with {tested})"))
    for name, floor, advisories in FLOORS:
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if tuple(int(part) for part in found.split(".")[:2] if part.isdigit()) < floor:
            least = ".".join(map(str, floor))
            yield HealthCheck(
                False, f"{name} {found} has known security advisories ({advisories}); fix: {name} >= {least}"
            )


def _device() -> HealthCheck:
    """Asked in a process of its own: importing torch here would cost every other check its seconds."""
    code = "import torch; n = torch.cuda.device_count(); print(f'{torch.cuda.get_device_name()}, {n} visible' if n else f'no GPU, {torch.get_num_threads()} CPU threads')"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        return HealthCheck(
            False,
            f"torch cannot be imported: {answer.stderr.strip().splitlines()[-1] if answer.stderr.strip() else 'no message'}",
        )
    return HealthCheck(True, f"trains on: {answer.stdout.strip()}")


def orphans() -> list[JobFolder]:
    """Jobs of this user whose run has no last word in MLflow and no supervisor on this host."""
    return [folder for folder in JobFolder.all() if _is_unfinished(folder) and not supervisor_alive(folder)]


def _is_unfinished(folder: JobFolder) -> bool:
    outcome = folder.read("outcome")
    return folder.read("run") is not None and (outcome is None or not outcome["recorded"])


def _jobs(*, reap: bool) -> Iterator[HealthCheck]:
    left = orphans()
    if not left:
        yield HealthCheck(True, f"no run left behind in {jobs_home()}")
    for folder in left:
        run_id = (folder.read("run") or {})["run_id"]
        if not reap:
            yield HealthCheck(False, f"run {run_id}: its supervisor died; fix: mlflow-finetune doctor --reap")
            continue
        start_supervisor(folder, adopt=True)
        deadline = time.monotonic() + _REAP_PATIENCE_S
        while _is_unfinished(folder) and time.monotonic() < deadline:
            time.sleep(0.2)
        outcome = folder.read("outcome")
        done = outcome is not None and outcome["recorded"]
        yield HealthCheck(
            done,
            f"run {run_id}: {outcome['status']}: {outcome['reason']}"
            if outcome
            else f"run {run_id}: a new supervisor watches its worker",
        )


def _tracking(*, reap: bool) -> Iterator[HealthCheck]:
    import mlflow

    from mlflow_finetune_plugin.errors import one_line, without_secrets
    from mlflow_finetune_plugin.jobs.run_record import reap_expired
    from mlflow_finetune_plugin.store.clients import client_for

    uri = without_secrets(mlflow.get_tracking_uri())
    try:
        client = client_for(mlflow.get_tracking_uri())
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        dead = reap_expired(client, experiments, now_s=time.time(), act=reap)
    except Exception as error:
        yield HealthCheck(False, f"tracking server {uri}: {one_line(error)}")
        return
    if not dead:
        yield HealthCheck(True, f"tracking server {uri}: no run without a sign of life")
    for run_id, reason in dead:
        yield HealthCheck(
            reap, f"run {run_id}: {reason}; " + ("marked FAILED" if reap else "fix: mlflow-finetune doctor --reap")
        )


def adopt_orphans() -> list[JobFolder]:
    """Gives every orphan a new supervisor; returns at once. Every new run does this for the old ones."""
    found = orphans()
    for folder in found:
        start_supervisor(folder, adopt=True)
    return found


def remove_old_folders(*, now_s: float) -> int:
    """Removes job folders whose run ended a week ago and is recorded, or that never had one. Returns how many."""
    import shutil

    old = [
        folder
        for folder in JobFolder.all()
        if now_s - _changed_s(folder) > KEEP_FOLDERS_S and not _is_unfinished(folder) and not supervisor_alive(folder)
    ]
    for folder in old:
        shutil.rmtree(folder.path, ignore_errors=True)
    return len(old)


def _changed_s(folder: JobFolder) -> float:
    """When something was last made in the folder; now, if another command has just removed it."""
    try:
        return os.path.getmtime(folder.path)
    except FileNotFoundError:
        return time.time()
