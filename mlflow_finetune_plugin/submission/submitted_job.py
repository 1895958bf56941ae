"""Submit a request: check everything that can be checked without torch, start the worker, and create the run.

The worker starts before the MLflow run exists, because its imports take longer than everything else together. It waits
for the run's id before it changes anything. If the run cannot be created, the worker is stopped and nothing remains.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from mlflow_finetune_plugin import __version__
from mlflow_finetune_plugin.config.entry_points import DEFAULT_ENTRY_POINT, OPERATIONS
from mlflow_finetune_plugin.config.entry_points import entry_point as find_entry_point
from mlflow_finetune_plugin.config.run_config import RunConfig
from mlflow_finetune_plugin.errors import FinetuneError, ProjectError, TrackingError
from mlflow_finetune_plugin.jobs import launcher
from mlflow_finetune_plugin.jobs.folder import JobFolder, ProcessId, jobs_home
from mlflow_finetune_plugin.jobs.orphans import adopt_orphans, remove_old_folders
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.jobs.supervisor import start_supervisor
from mlflow_finetune_plugin.jobs.versions import untested_note
from mlflow_finetune_plugin.planning.preflight import load_checked_config
from mlflow_finetune_plugin.startup import quiet_libraries
from mlflow_finetune_plugin.store.clients import absolute_store, check_store_answers
from mlflow_finetune_plugin.store.start_model import find_start_model
from mlflow_finetune_plugin.submission.attempts import next_attempt
from mlflow_finetune_plugin.submission.backend_config import BackendSettings, backend_settings
from mlflow_finetune_plugin.submission.experiment import project_name
from mlflow_finetune_plugin.submission.mlflow_run import (
    Submission,
    check_param_names,
    create_run,
    end_run,
    log_params,
    tracking_error,
)
from mlflow_finetune_plugin.submission.mlproject import FinetuneCommand, OwnCommand, entry_names, mlproject_entry
from mlflow_finetune_plugin.submission.operations import operation_config
from mlflow_finetune_plugin.submission.project import ProjectFolder, open_project
from mlflow_finetune_plugin.submission.votes import bring_votes

logger = logging.getLogger(__name__)

_NO_ENTRY_POINT = "main"  # what MLflow passes without -e

TELEMETRY_OFF = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


@dataclass(frozen=True)
class SubmittedJob:
    """A job that runs."""

    run_id: str
    folder: JobFolder
    detach: bool
    tracking_uri: str


def submit(request: Submission) -> SubmittedJob:
    """Check the request, start it under a supervisor and create its MLflow run.

    Raises:
        FinetuneError: The request cannot become a run; nothing remains.
    """
    quiet_libraries(owns_process=False)
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
    request = replace(request, experiment_name=project_name(project.path, project.source))
    entry = mlproject_entry(project.path, request.entry_point, request.parameters)
    if entry is None and request.entry_point == _NO_ENTRY_POINT:
        request = replace(request, entry_point=DEFAULT_ENTRY_POINT)
    if isinstance(entry, OwnCommand):
        check_store_answers(request.tracking_uri)
        settings.refuse_processes("a project's own command starts its processes itself")
        return _submit_command(request, folder, project, entry)
    if isinstance(entry, FinetuneCommand):
        request, project = _follow_mlproject(request, project, entry)
    else:
        find_entry_point(request.entry_point, beside=entry_names(project.path))
    if request.entry_point in OPERATIONS:
        settings.refuse_processes(f"{request.entry_point} runs in one process")
        check_store_answers(request.tracking_uri)
        return _submit_operation(request, folder, project)
    return _submit_training(request, folder, project, settings)


def _follow_mlproject(
    request: Submission, project: ProjectFolder, entry: FinetuneCommand
) -> tuple[Submission, ProjectFolder]:
    """Replace the request by the preset, if the MLproject's command is ``mlflow-finetune run DIR -e NAME -P ...``."""
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
    config = load_checked_config(
        project.path, request.entry_point, request.parameters, caller=request.caller, folders=request.folders
    )
    processes = launcher.environments(
        gpus_per_node=settings.gpus_per_node, processes_per_node=settings.processes_per_node
    )
    check_store_answers(request.tracking_uri)  # MLflow itself would try for minutes
    if config.resume is not None:
        request = _go_on_with(config, request)
    elif config.start_from is not None:
        _check_start(config.start_from, request)
    bring_votes(config, request, folder)
    folder.write("config", config.model_dump(mode="json", by_alias=True))
    if (note := untested_note()) is not None:
        Report(folder.report).note(note)
    return _start_worker(request, folder, project, "train", processes)


def _check_start(reference: str, request: Submission) -> None:
    """Check that the version to start from exists, before there is a run. The worker checks its files."""
    from mlflow import MlflowClient

    try:
        find_start_model(MlflowClient(request.tracking_uri), reference)
    except TrackingError as error:
        raise tracking_error(request, error) from error


def _go_on_with(config: RunConfig, request: Submission) -> Submission:
    """Return the request as the next attempt of the run that the configuration names."""
    from mlflow import MlflowClient

    try:
        attempt = next_attempt(
            MlflowClient(request.tracking_uri),
            str(config.resume),
            adaptation=None if config.is_adaptation_default else config.adaptation,
            objective=config.objective,
        )
    except FinetuneError:
        raise
    except Exception as error:  # a tracking store can raise anything, and the message goes to the user
        raise tracking_error(request, error) from error
    return replace(request, run_id=attempt.run_id, attempt=attempt.number, experiment_id=attempt.experiment_id)


def _submit_operation(request: Submission, folder: JobFolder, project: ProjectFolder) -> str:
    folder.write("config", operation_config(request, project.path))
    return _start_worker(request, folder, project, request.entry_point)


def _start_worker(
    request: Submission,
    folder: JobFolder,
    project: ProjectFolder,
    kind: str,
    processes: Sequence[Mapping[str, str]] = ({},),
) -> str:
    """Start the worker under its supervisor, and then create the run, for which the worker waits."""
    command = [sys.executable, "-m", "mlflow_finetune_plugin.worker", str(folder.path)]
    _write_job(request, folder, kind, command, {}, cwd=request.caller, processes=processes)
    supervisor = start_supervisor(folder)
    try:
        run = create_run(request, folder, project)
        folder.write("run", run.to_json())
    except BaseException as error:
        _abandon(supervisor)
        end_run(request, folder, error)
        raise
    return run.run_id


def _submit_command(request: Submission, folder: JobFolder, project: ProjectFolder, entry: OwnCommand) -> str:
    """Run a project's own program. The MLflow run exists first, because the program expects its id in the environment."""
    check_param_names(entry.parameters)
    supervisor: int | None = None
    try:
        run = create_run(request, folder, project)
        request = replace(request, experiment_id=run.experiment_id)
        log_params(request, run.run_id, entry.parameters)
        environment = {"MLFLOW_RUN_ID": run.run_id}
        _write_job(request, folder, "command", ["bash", "-c", entry.command], environment, cwd=project.path)
        folder.write("run", run.to_json())
        supervisor = start_supervisor(folder)
    except BaseException as error:
        if supervisor is not None:
            _abandon(supervisor)
        end_run(request, folder, error)
        raise
    return run.run_id


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
                **({"MLFLOW_EXPERIMENT_ID": request.experiment_id} if request.experiment_id else {}),
                **environment,
            },
            "processes": [dict(process) for process in processes],
            "tracking_uri": request.tracking_uri,
            "experiment_id": request.experiment_id,
            "experiment_name": request.experiment_name,
            "attempt": request.attempt,
            "started_by": ProcessId.of(os.getpid()).to_json(),
            "version": __version__,
        },
    )


def _abandon(supervisor: int) -> None:
    """End a supervisor, its sentinel and its worker at once. The supervisor is stopped first, so that it starts no
    other process.
    """
    try:
        os.kill(supervisor, signal.SIGSTOP)
        for child in psutil.Process(supervisor).children(recursive=True):
            child.kill()
        os.kill(supervisor, signal.SIGKILL)
        psutil.Process(supervisor).wait(10)
    except (ProcessLookupError, psutil.NoSuchProcess):
        logger.debug("supervisor %s had already ended", supervisor)
