"""A run's next attempt: may this run be resumed now, and by which number will its writers know each other?"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.jobs import JobFolder, ProcessId, jobs_home, supervisor_alive
from mlflow_finetune_plugin.tracking import ATTEMPT_TAG, HEARTBEAT_EXPIRES_S, HEARTBEAT_TAG, HOST_TAG, JOB_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

WINDING_UP_S = 60.0
"""How long a supervisor whose worker has died is given to write its last word."""


@dataclass(frozen=True)
class NextAttempt:
    """The run to go on with."""

    run_id: str
    number: int
    experiment_id: str


def next_attempt(client: MlflowClient, run_id: str, *, adaptation: str, objective: str) -> NextAttempt:
    """Raises ConfigError for a run that cannot, or must not, be resumed; what a tracking store raises is passed on."""
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
    for kind, wanted in (("adaptation", adaptation), ("objective", objective)):
        before = tags.get(f"finetune.{kind}", wanted)
        if before != wanted:
            raise _refusal(
                run_id, f"its {kind} is {before}, not {wanted}; fix: the same command as before, or a new run"
            )
    if run.info.status == "RUNNING":
        _check_dead(run)
    return NextAttempt(run_id, int(tags[ATTEMPT_TAG]) + 1, run.info.experiment_id)


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
