"""From a request to a supervised job: check everything that can be checked without torch, start, create the run.

The worker starts before the MLflow run exists, because its imports take longer than everything else together; it waits
for the run's id before it touches anything. When the run cannot be created, the worker is stopped and nothing remains.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from mlflow_finetune_plugin import __version__
from mlflow_finetune_plugin.attempts import claim, next_attempt
from mlflow_finetune_plugin.backend_settings import BackendSettings, backend_settings
from mlflow_finetune_plugin.config import RunConfig, load_config, resolve_paths
from mlflow_finetune_plugin.doctor import adopt_orphans, remove_old_folders
from mlflow_finetune_plugin.entry_points import OPERATIONS
from mlflow_finetune_plugin.entry_points import entry_point as find_entry_point
from mlflow_finetune_plugin.errors import ConfigError, FinetuneError, ProjectError, TrackingError
from mlflow_finetune_plugin.jobs import JobFolder, ProcessId, jobs_home
from mlflow_finetune_plugin.launchers import local
from mlflow_finetune_plugin.mlproject import FinetuneCommand, OwnCommand, entry_names, mlproject_entry
from mlflow_finetune_plugin.operations import operation_config
from mlflow_finetune_plugin.preflight import check_before_spend
from mlflow_finetune_plugin.projects import ProjectFolder, caller_folder, open_project
from mlflow_finetune_plugin.supervisor import start_supervisor
from mlflow_finetune_plugin.tracking import (
    ATTEMPT_TAG,
    HEARTBEAT_TAG,
    HOST_TAG,
    JOB_TAG,
    STATUS_TAG,
    RunRecord,
    absolute_store,
    without_secrets,
)

logger = logging.getLogger(__name__)

TELEMETRY_OFF = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


@dataclass(frozen=True)
class Submission:
    """One request, as MLflow hands it over."""

    project_uri: str
    entry_point: str
    parameters: dict[str, str]
    version: str | None
    backend_config: dict[str, Any]
    tracking_uri: str
    experiment_id: str
    run_name: str | None = None
    run_id: str | None = None
    attempt: int = 1
    caller: Path = field(default_factory=caller_folder)
    folders: Mapping[str, Path] = field(default_factory=dict)
    """Parameters whose relative paths start elsewhere than in ``caller``."""


@dataclass(frozen=True)
class SubmittedJob:
    """A job that runs."""

    run_id: str
    folder: JobFolder
    detach: bool
    tracking_uri: str


def submit(request: Submission) -> SubmittedJob:
    """Checks the request, starts it under a supervisor and creates its MLflow run.

    Raises a FinetuneError, with nothing left behind, when the request cannot become a run.
    """
    settings = backend_settings(request.backend_config)
    request = replace(request, tracking_uri=absolute_store(request.tracking_uri, request.caller))
    try:
        adopt_orphans()
        remove_old_folders(now_s=time.time())
        folder = JobFolder.create()
        folder.answer_for(os.getpid())
    except OSError as error:
        raise FinetuneError(
            f"job folders in {jobs_home()}: {error.strerror or error}; fix: set MLFLOW_FINETUNE_HOME to a folder that you can write to"
        ) from error
    try:
        run_id = _submit_into(folder, request, settings)
    except OSError as error:
        shutil.rmtree(folder.path, ignore_errors=True)
        if isinstance(error, FinetuneError):
            raise
        raise FinetuneError(f"{error.filename or folder.path}: {error.strerror or error}") from error
    except BaseException:
        shutil.rmtree(folder.path, ignore_errors=True)
        raise
    return SubmittedJob(run_id, folder, settings.detach, request.tracking_uri)


def _submit_into(folder: JobFolder, request: Submission, settings: BackendSettings) -> str:
    project = open_project(request.project_uri, request.version, folder.path / "project")
    entry = mlproject_entry(project.path, request.entry_point, request.parameters)
    if isinstance(entry, OwnCommand):
        settings.refuse_processes("a project's own command starts its processes itself")
        return _submit_command(request, folder, project, entry)
    if isinstance(entry, FinetuneCommand):
        request, project = _follow_mlproject(request, project, entry)
    else:
        find_entry_point(request.entry_point, beside=entry_names(project.path))
    if request.entry_point in OPERATIONS:
        settings.refuse_processes(f"{request.entry_point} runs in one process")
        return _submit_operation(request, folder, project)
    return _submit_training(request, folder, project, settings)


def _follow_mlproject(
    request: Submission, project: ProjectFolder, entry: FinetuneCommand
) -> tuple[Submission, ProjectFolder]:
    """An MLproject whose command is ``mlflow-finetune run DIR -e NAME -P ...`` is a preset of ours."""
    arguments = entry.arguments
    path = (project.path / arguments.project).resolve()
    if not path.is_dir():
        raise ProjectError(
            f"{project.path}/MLproject, entry point {request.entry_point!r}: no folder {path}; fix: correct its command"
        )
    request = replace(
        request,
        entry_point=arguments.entry_point,
        parameters=arguments.parameters,
        folders={name: project.path for name in arguments.parameters if name not in entry.from_caller},
        run_name=request.run_name or arguments.run_name,
    )
    return request, replace(project, path=path)


def _submit_training(request: Submission, folder: JobFolder, project: ProjectFolder, settings: BackendSettings) -> str:
    config = load_config(
        project.path, request.entry_point, request.parameters, caller=request.caller, folders=request.folders
    )
    config = resolve_paths(config, project.path)
    check_before_spend(config)
    processes = local.environments(gpus_per_node=settings.gpus_per_node, processes_per_node=settings.processes_per_node)
    if config.resume is not None:
        request = _go_on_with(config, request)
    folder.write("config", config.model_dump(mode="json", by_alias=True))
    return _start_worker(request, folder, project, "train", processes)


def _go_on_with(config: RunConfig, request: Submission) -> Submission:
    """The request as the next attempt of the run that the config names."""
    from mlflow import MlflowClient

    try:
        attempt = next_attempt(
            MlflowClient(request.tracking_uri),
            str(config.resume),
            adaptation=config.adaptation,
            objective=config.objective,
        )
    except FinetuneError:
        raise
    except Exception as error:  # whatever a tracking store raises, the person is told what it said
        raise _tracking_error(request, error) from error
    return replace(request, run_id=attempt.run_id, attempt=attempt.number, experiment_id=attempt.experiment_id)


def _submit_operation(request: Submission, folder: JobFolder, project: ProjectFolder) -> str:
    config = operation_config(
        request.entry_point,
        project.path,
        request.parameters,
        caller=request.caller,
        folders=request.folders,
        tracking_uri=request.tracking_uri,
    )
    folder.write("config", config)
    return _start_worker(request, folder, project, request.entry_point)


def _start_worker(
    request: Submission,
    folder: JobFolder,
    project: ProjectFolder,
    kind: str,
    processes: Sequence[Mapping[str, str]] = ({},),
) -> str:
    """Starts the worker under its supervisor, then creates the run, for which the worker waits."""
    command = [sys.executable, "-m", "mlflow_finetune_plugin.worker", str(folder.path)]
    _write_job(request, folder, kind, command, {}, cwd=request.caller, processes=processes)
    supervisor = start_supervisor(folder)
    try:
        run_id = _create_run(request, folder, project)
        folder.write("run", {"run_id": run_id})
    except BaseException as error:
        _abandon(supervisor)
        _end_run(request, folder, error)
        raise
    return run_id


def _submit_command(request: Submission, folder: JobFolder, project: ProjectFolder, entry: OwnCommand) -> str:
    """A project's own program: the run exists first, because the program expects its id in the environment."""
    _check_param_names(entry.parameters)
    supervisor: int | None = None
    try:
        run_id = _create_run(request, folder, project)
        _log_params(request, run_id, entry.parameters)
        environment = {"MLFLOW_RUN_ID": run_id}
        _write_job(request, folder, "command", ["bash", "-c", entry.command], environment, cwd=project.path)
        folder.write("run", {"run_id": run_id})
        supervisor = start_supervisor(folder)
    except BaseException as error:
        if supervisor is not None:
            _abandon(supervisor)
        _end_run(request, folder, error)
        raise
    return run_id


def _check_param_names(parameters: Mapping[str, str]) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_param_name

    for name in parameters:
        try:
            _validate_param_name(name)
        except MlflowException as error:
            raise ConfigError(
                [f"-P {name[:120]}: MLflow takes no parameter of this name: {_one_line(error)}"]
            ) from None


def _log_params(request: Submission, run_id: str, parameters: Mapping[str, str]) -> None:
    from mlflow import MlflowClient

    try:
        record = RunRecord(MlflowClient(request.tracking_uri), run_id, attempt=1)
        record.apply({"event": "params", "values": dict(parameters)})
    except Exception as error:  # whatever a tracking store raises, the person is told what it said
        raise _tracking_error(request, error) from error


def _end_run(request: Submission, folder: JobFolder, error: BaseException) -> None:
    """A run that was created, but whose work was not started, says so. A server that is away had no run to create."""
    if isinstance(error, TrackingError):
        return
    from mlflow import MlflowClient

    client = MlflowClient(request.tracking_uri)
    status = "FAILED" if isinstance(error, Exception) else "KILLED"
    try:
        runs = client.search_runs([request.experiment_id], f"tags.`{JOB_TAG}` = '{folder.id}'")
        for run in runs:
            client.set_tag(run.info.run_id, STATUS_TAG, f"not started: {type(error).__name__}: {_one_line(error)}")
            client.set_terminated(run.info.run_id, status)
    except Exception as refusal:
        logger.error("the run of %s may still say RUNNING: %s: %s", folder.id, type(refusal).__name__, refusal)


def _write_job(
    request: Submission,
    folder: JobFolder,
    kind: str,
    command: list[str],
    environment: dict[str, str],
    *,
    cwd: Path,
    processes: Sequence[Mapping[str, str]] = ({},),
) -> None:
    folder.write(
        "job",
        {
            "kind": kind,
            "command": command,
            "cwd": str(cwd),
            "environment": {
                **TELEMETRY_OFF,
                "MLFLOW_TRACKING_URI": request.tracking_uri,
                "MLFLOW_EXPERIMENT_ID": request.experiment_id,
                **environment,
            },
            "processes": [dict(own) for own in processes],
            "tracking_uri": request.tracking_uri,
            "experiment_id": request.experiment_id,
            "attempt": request.attempt,
            "started_by": ProcessId.of(os.getpid()).to_json(),
            "version": __version__,
        },
    )


def _create_run(request: Submission, folder: JobFolder, project: ProjectFolder) -> str:
    """The MLflow run with the tags that stock MLflow sets, and ours. Raises TrackingError."""
    import mlflow
    from mlflow import MlflowClient
    from mlflow.tracking.context.default_context import _get_user
    from mlflow.utils import mlflow_tags as tags
    from mlflow.utils.string_utils import is_string_type

    parent = mlflow.active_run()
    project = project.with_lineage()
    values = {
        tags.MLFLOW_SOURCE_NAME: project.source,
        tags.MLFLOW_SOURCE_TYPE: "PROJECT",
        tags.MLFLOW_PROJECT_ENTRY_POINT: request.entry_point,
        tags.MLFLOW_PROJECT_BACKEND: "finetune",
        tags.MLFLOW_PROJECT_ENV: "local",
        tags.MLFLOW_USER: _get_user(),
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
            return request.run_id
        run = client.create_run(request.experiment_id, tags=present, run_name=request.run_name)
    except ConfigError:
        raise
    except Exception as error:  # whatever a tracking store raises, the person is told what it said
        raise _tracking_error(request, error) from error
    return str(run.info.run_id)


def _tracking_error(request: Submission, error: Exception) -> TrackingError:
    return TrackingError(without_secrets(f"tracking server {request.tracking_uri}: {_one_line(error)}"))


def _abandon(supervisor: int) -> None:
    """Ends a supervisor, its sentinel and its worker at once. It is stopped first, so that it starts nobody meanwhile."""
    try:
        os.kill(supervisor, signal.SIGSTOP)
        for child in psutil.Process(supervisor).children(recursive=True):
            child.kill()
        os.kill(supervisor, signal.SIGKILL)
        psutil.Process(supervisor).wait(10)
    except (ProcessLookupError, psutil.NoSuchProcess):
        logger.debug("supervisor %s had already ended", supervisor)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]
