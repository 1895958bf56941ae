"""Create the MLflow run of a submission with its lineage and parameters, and end it if its work does not begin."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.errors import ConfigError, FinetuneError, TrackingError, in_short, one_line, without_secrets
from mlflow_finetune_plugin.jobs.folder import JobFolder
from mlflow_finetune_plugin.jobs.run_record import RunRecord
from mlflow_finetune_plugin.store.names import ATTEMPT_TAG, HEARTBEAT_TAG, HOST_TAG, JOB_TAG, STATUS_TAG
from mlflow_finetune_plugin.submission.attempts import claim
from mlflow_finetune_plugin.submission.experiment import find_experiment, next_run_name, project_experiment
from mlflow_finetune_plugin.submission.project import ProjectFolder, caller_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CreatedRun:
    """The ids of a run that exists in MLflow, and of its experiment."""

    run_id: str
    experiment_id: str

    def to_json(self) -> dict[str, str]:
        """Return the ids for the job folder's file ``run``."""
        return {"run_id": self.run_id, "experiment_id": self.experiment_id}


@dataclass(frozen=True)
class Submission:
    """One request, as MLflow passes it on."""

    project_uri: str
    entry_point: str
    parameters: dict[str, str]
    version: str | None
    backend_config: dict[str, Any]
    tracking_uri: str
    experiment_id: str | None
    """The experiment that the user chose; None is the one named ``experiment_name``."""
    experiment_name: str = "finetune"
    """The project's name."""
    run_name: str | None = None
    run_id: str | None = None
    attempt: int = 1
    caller: Path = field(default_factory=caller_folder)
    folders: Mapping[str, Path] = field(default_factory=dict)
    """Parameters whose relative paths start elsewhere than in ``caller``."""


def check_param_names(parameters: Mapping[str, str]) -> None:
    from mlflow.exceptions import MlflowException

    from mlflow_finetune_plugin.internals.mlflow import check_param_name

    for name in parameters:
        try:
            check_param_name(name)
        except MlflowException as error:
            raise ConfigError([f"-P {name[:120]}: MLflow takes no parameter of this name: {one_line(error)}"]) from None


def log_params(request: Submission, run_id: str, parameters: Mapping[str, str]) -> None:
    from mlflow import MlflowClient

    try:
        record = RunRecord(MlflowClient(request.tracking_uri), run_id, attempt=1)
        record.apply({"event": "params", "values": dict(parameters)})
    except Exception as error:  # a tracking store can raise anything, and the message goes to the user
        raise tracking_error(request, error) from error


def end_run(request: Submission, folder: JobFolder, error: BaseException) -> None:
    """End a run whose work did not begin, with the reason. If the server is away, there is no run."""
    if isinstance(error, TrackingError):
        return
    from mlflow import MlflowClient

    client = MlflowClient(request.tracking_uri)
    status = "FAILED" if isinstance(error, Exception) else "KILLED"
    try:
        experiment_id = request.experiment_id or find_experiment(client, request.tracking_uri, request.experiment_name)
        runs = client.search_runs([experiment_id], f"tags.`{JOB_TAG}` = '{folder.id}'") if experiment_id else []
        for run in runs:
            client.set_tag(run.info.run_id, STATUS_TAG, f"not started: {in_short(error)}")
            client.set_terminated(run.info.run_id, status)
    except Exception as refusal:
        logger.error("the run of %s may still say RUNNING: %s: %s", folder.id, type(refusal).__name__, refusal)


def create_run(request: Submission, folder: JobFolder, project: ProjectFolder) -> CreatedRun:
    """Create the MLflow run with the tags that stock MLflow sets, and ours. Raises TrackingError."""
    import mlflow
    from mlflow import MlflowClient
    from mlflow.utils import mlflow_tags as tags
    from mlflow.utils.string_utils import is_string_type

    from mlflow_finetune_plugin.internals.mlflow import user_name

    parent = mlflow.active_run()
    project = project.with_lineage()
    values = {
        tags.MLFLOW_SOURCE_NAME: project.source,
        tags.MLFLOW_SOURCE_TYPE: "PROJECT",
        tags.MLFLOW_PROJECT_ENTRY_POINT: request.entry_point,
        tags.MLFLOW_PROJECT_BACKEND: "finetune",
        tags.MLFLOW_PROJECT_ENV: "local",
        tags.MLFLOW_USER: user_name(),
        tags.MLFLOW_GIT_COMMIT: project.commit,
        tags.MLFLOW_GIT_REPO_URL: project.repository,
        tags.MLFLOW_GIT_BRANCH: project.branch,
        tags.MLFLOW_PARENT_RUN_ID: parent.info.run_id if parent else None,
        JOB_TAG: folder.id,
        HOST_TAG: socket.gethostname(),
        ATTEMPT_TAG: str(request.attempt),
        STATUS_TAG: f"attempt {request.attempt} runs" if request.attempt > 1 else None,
        HEARTBEAT_TAG: str(int(time.time())),
    }
    present = {key: value for key, value in values.items() if is_string_type(value)}
    try:
        client = MlflowClient(request.tracking_uri)
        if request.run_id is not None:
            if request.attempt > 1:
                claim(client, request.run_id, request.attempt, folder.id)
            for key, value in present.items():
                client.set_tag(request.run_id, key, value)
            client.update_run(request.run_id, status="RUNNING")
            experiment_id = request.experiment_id or client.get_run(request.run_id).info.experiment_id
            return CreatedRun(request.run_id, str(experiment_id))
        experiment_id = request.experiment_id or (parent.info.experiment_id if parent else None)
        if experiment_id is None:
            experiment_id = project_experiment(client, request.tracking_uri, request.experiment_name)
        run_name = request.run_name or next_run_name(client, experiment_id, request.entry_point, date.today())
        run = client.create_run(experiment_id, tags=present, run_name=run_name)
    except FinetuneError:
        raise
    except Exception as error:  # a tracking store can raise anything, and the message goes to the user
        raise tracking_error(request, error) from error
    return CreatedRun(str(run.info.run_id), str(experiment_id))


def tracking_error(request: Submission, error: Exception) -> TrackingError:
    return TrackingError(f"tracking server {without_secrets(request.tracking_uri)}: {one_line(error)}")
