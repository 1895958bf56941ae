"""Resume a run: check whether it may be resumed now, and number the attempt.

Each number is used once: the command that takes it writes a param of the run, and a tracking store never overwrites a
param. If two commands resume the same run at the same moment, one of them finds the other's name there.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.jobs.folder import JobFolder, ProcessId, jobs_home, supervisor_alive
from mlflow_finetune_plugin.jobs.run_record import HEARTBEAT_EXPIRES_S
from mlflow_finetune_plugin.store.names import (
    ADAPTATION_TAG,
    ATTEMPT_OWNER_PARAM,
    ATTEMPT_TAG,
    HEARTBEAT_TAG,
    HOST_TAG,
    JOB_TAG,
    OBJECTIVE_TAG,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

WINDING_UP_S = 60.0
"""Time for a supervisor whose worker has died to write the status."""


@dataclass(frozen=True)
class NextAttempt:
    """The run to resume."""

    run_id: str
    number: int
    experiment_id: str


def next_attempt(client: MlflowClient, run_id: str, *, adaptation: str | None, objective: str) -> NextAttempt:
    """Return the next attempt of a run. The tracking store's exceptions are passed on.

    ``adaptation`` is None where the version that the run started from decides it.

    Raises:
        ConfigError: The run cannot be resumed.
    """
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise _refusal(
            run_id, "no such run on this tracking server; fix: give the id of a run of this server"
        ) from None
    tags = run.data.tags
    if run.info.lifecycle_stage == "deleted":
        raise _refusal(run_id, f"the run was deleted; fix: mlflow runs restore --run-id {run_id}")
    if ATTEMPT_TAG not in tags:
        raise _refusal(run_id, "no run of this backend; fix: give the id of a run that it started")
    if run.info.status == "FINISHED":
        raise _refusal(run_id, "the run has finished, nothing is left to do; fix: start a new run")
    for kind, tag, method in (("adaptation", ADAPTATION_TAG, adaptation), ("objective", OBJECTIVE_TAG, objective)):
        before = tags.get(tag, method)
        if method is not None and before != method:
            raise _refusal(
                run_id, f"its {kind} is {before}, not {method}; fix: the same command as before, or a new run"
            )
    if run.info.status == "RUNNING":
        _check_dead(run)
    number = int(tags[ATTEMPT_TAG]) + 1
    while (owner := run.data.params.get(f"{ATTEMPT_OWNER_PARAM}{number}")) is not None:
        _check_gone(run_id, Owner.from_text(owner))
        number += 1
    return NextAttempt(run_id, number, run.info.experiment_id)


@dataclass(frozen=True)
class Owner:
    """The process that makes an attempt."""

    host: str
    job: str
    since_s: int

    def __str__(self) -> str:
        return f"{self.host} {self.job} {self.since_s}"

    @classmethod
    def from_text(cls, text: str) -> Owner:
        host, job, since = text.rsplit(" ", 2)
        return cls(host, job, int(since))


def claim(client: MlflowClient, run_id: str, number: int, job: str) -> None:
    """Take the attempt for this job. Raises ConfigError if another job has it. The tracking store's exceptions are
    passed on.
    """
    from mlflow.exceptions import MlflowException

    mine, name = Owner(socket.gethostname(), job, int(time.time())), f"{ATTEMPT_OWNER_PARAM}{number}"
    refusal: MlflowException | None = None
    try:
        client.log_param(run_id, name, str(mine))
    except MlflowException as error:
        refusal = error
    owner = client.get_run(run_id).data.params.get(name)
    if owner is not None and owner != str(mine):
        raise _held(run_id, Owner.from_text(owner))
    if refusal is not None:
        raise refusal


def _check_gone(run_id: str, owner: Owner) -> None:
    """Check an attempt that was taken but has not begun: its command died, or is beginning it at this moment."""
    folder = JobFolder(jobs_home() / "jobs" / owner.job)
    if owner.host == socket.gethostname() and folder.path.is_dir():
        if supervisor_alive(folder):
            raise _held(run_id, owner)
    elif time.time() - owner.since_s < HEARTBEAT_EXPIRES_S:
        raise _held(run_id, owner)


def _held(run_id: str, owner: Owner) -> ConfigError:
    return _refusal(
        run_id,
        f"{owner.host} (job {owner.job}) has begun to resume it {max(0, time.time() - owner.since_s):.0f} s ago; fix: wait for "
        "that attempt, or cancel it first",
    )


def _check_dead(run: Any) -> None:
    tags, run_id = run.data.tags, run.info.run_id
    folder = JobFolder(jobs_home() / "jobs" / tags.get(JOB_TAG, "-"))
    if tags.get(HOST_TAG) == socket.gethostname() and folder.path.is_dir():
        deadline = time.monotonic() + WINDING_UP_S
        while supervisor_alive(folder) and not _worker_alive(folder) and time.monotonic() < deadline:
            time.sleep(0.2)
        if supervisor_alive(folder):
            raise _refusal(run_id, "the run still runs here; fix: wait for its end, or cancel it first")
        return
    silent_s = time.time() - float(tags.get(HEARTBEAT_TAG, 0))
    if silent_s < HEARTBEAT_EXPIRES_S:
        raise _refusal(
            run_id,
            f"the run gave a sign of life from {tags.get(HOST_TAG, 'its host')} {silent_s:.0f} s ago; fix: cancel it there, "
            f"or wait until it has been silent for {HEARTBEAT_EXPIRES_S / 60:.0f} minutes",
        )


def _worker_alive(folder: JobFolder) -> bool:
    worker = ProcessId.from_json((folder.read("state") or {}).get("worker"))
    return worker is not None and worker.is_alive()


def _refusal(run_id: str, why: str) -> ConfigError:
    return ConfigError([f"-P resume = {run_id}: {why}"])
