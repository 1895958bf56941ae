"""From a request to a supervised job: check everything that can be checked without torch, start, create the run.

The worker starts before the MLflow run exists, because its imports take longer than everything else together; it waits
for the run's id before it touches anything. When the run cannot be created, the worker is stopped and nothing remains.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from mlflow_finetune_plugin import __version__
from mlflow_finetune_plugin.base_files import check_base_files, local_folder
from mlflow_finetune_plugin.config import RunConfig, load_config, resolve_paths
from mlflow_finetune_plugin.data.layouts import detect_layout
from mlflow_finetune_plugin.data.sources import peek
from mlflow_finetune_plugin.doctor import adopt_orphans
from mlflow_finetune_plugin.errors import ConfigError, FinetuneError, MissingExtraError, TrackingError
from mlflow_finetune_plugin.jobs import JobFolder, ProcessId
from mlflow_finetune_plugin.methods import unknown
from mlflow_finetune_plugin.projects import (
    FinetuneCommand,
    OwnCommand,
    ProjectFolder,
    caller_folder,
    mlproject_entry,
    open_project,
)
from mlflow_finetune_plugin.run_command import parse_run_arguments
from mlflow_finetune_plugin.settings import Section
from mlflow_finetune_plugin.supervisor import start_supervisor
from mlflow_finetune_plugin.tracking import ATTEMPT_TAG, HEARTBEAT_TAG, HOST_TAG, JOB_TAG

_MLFLOW_KEYS = ("ENV_MANAGER", "SYNCHRONOUS", "DOCKER_ARGS", "STORAGE_DIR", "build_image", "docker_auth")
TELEMETRY_OFF = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
_TRAIN_PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "evaluate")


class BackendSettings(Section):
    """What ``-c`` may hold: infrastructure only, never hyperparameters."""

    launcher: str = Field("local", description="How workers are started: local.")
    detach: bool = Field(False, description="Return at once with the run id instead of waiting.")


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
    caller: Path = field(default_factory=caller_folder)


@dataclass(frozen=True)
class SubmittedJob:
    """A job that runs."""

    run_id: str
    folder: JobFolder
    detach: bool


def submit(request: Submission) -> SubmittedJob:
    """Checks the request, starts it under a supervisor and creates its MLflow run.

    Raises a FinetuneError, with nothing left behind, when the request cannot become a run.
    """
    settings = _backend_settings(request.backend_config)
    adopt_orphans()
    folder = JobFolder.create()
    try:
        project = open_project(request.project_uri, request.version, folder.path / "project")
        entry = mlproject_entry(project.path, request.entry_point, request.parameters)
        if isinstance(entry, OwnCommand):
            run_id = _submit_command(request, folder, project, entry)
        else:
            if isinstance(entry, FinetuneCommand):
                request, project = _follow_mlproject(request, project, entry)
            run_id = _submit_training(request, folder, project)
    except BaseException:
        shutil.rmtree(folder.path, ignore_errors=True)
        raise
    return SubmittedJob(run_id, folder, settings.detach)


def _backend_settings(backend_config: dict[str, Any]) -> BackendSettings:
    manager = backend_config.get("ENV_MANAGER")
    if manager not in (None, "local"):
        raise ConfigError(
            [
                f"--env-manager {manager}: this backend trains in the environment it runs in, whose torch matches the GPU; fix: --env-manager local"
            ]
        )
    given = {key: value for key, value in backend_config.items() if key not in _MLFLOW_KEYS}
    try:
        settings = BackendSettings.model_validate(given)
    except ValidationError as error:
        known = list(BackendSettings.model_fields)
        raise ConfigError(
            [
                f"-c {'.'.join(map(str, fault['loc']))} = {fault['input']!r}: {fault['msg'].lower()}; known: {', '.join(known)} (hyperparameters go to -P)"
                for fault in error.errors()
            ]
        ) from None
    if settings.launcher != "local":
        raise ConfigError([unknown("launcher", settings.launcher, ["local"])])
    return settings


def _follow_mlproject(
    request: Submission, project: ProjectFolder, entry: FinetuneCommand
) -> tuple[Submission, ProjectFolder]:
    """An MLproject whose command is ``mlflow-finetune run DIR -e NAME -P ...`` is a preset of ours."""
    arguments = parse_run_arguments(list(entry.arguments))
    path = (project.path / arguments.project).resolve()
    request = replace(request, entry_point=arguments.entry_point, parameters=arguments.parameters)
    return request, replace(project, path=path)


def _submit_training(request: Submission, folder: JobFolder, project: ProjectFolder) -> str:
    config = load_config(project.path, request.entry_point, request.parameters, caller=request.caller)
    config = resolve_paths(config, project.path)
    check_before_spend(config)
    folder.write("config", config.model_dump(mode="json", by_alias=True))
    command = [sys.executable, "-m", "mlflow_finetune_plugin.worker", str(folder.path)]
    _write_job(request, folder, "train", command, {}, cwd=request.caller)
    supervisor = start_supervisor(folder)
    try:
        run_id = _create_run(request, folder, project)
    except BaseException:
        _abandon(folder, supervisor)
        raise
    folder.write("run", {"run_id": run_id})
    return run_id


def _submit_command(request: Submission, folder: JobFolder, project: ProjectFolder, entry: OwnCommand) -> str:
    """A project's own program: the run exists first, because the program expects its id in the environment."""
    run_id = _create_run(request, folder, project)
    if entry.parameters:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        MlflowClient(request.tracking_uri).log_batch(run_id, params=[Param(k, v) for k, v in entry.parameters.items()])
    folder.write("run", {"run_id": run_id})
    environment = {"MLFLOW_RUN_ID": run_id}
    _write_job(request, folder, "command", ["bash", "-c", entry.command], environment, cwd=project.path)
    start_supervisor(folder)
    return run_id


def check_before_spend(config: RunConfig) -> None:
    """What can be known without torch: installed packages, the base's files, the head of every data file."""
    import importlib.util

    missing = [name for name in _TRAIN_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"training needs {', '.join(missing)}; fix: pip install 'mlflow-finetune[train]'")
    problems: list[str] = []
    _check_base(config, problems)
    for path in _data_paths(config):
        try:
            detect_layout([row for _, row in peek(path)], config.data.columns or None, config.data.layout)
        except FinetuneError as error:
            problems.append(_with_path(str(error), path))
    for label, name in (
        ("data.chat_template", config.data.chat_template),
        ("eval.forgetting", config.eval.forgetting or None),
    ):
        if name is not None and not Path(name).is_file():
            problems.append(f"{label} = {name}: no such file")
    for metric in config.eval.metrics if config.eval.metrics != "auto" else []:
        if metric.endswith(".py") and not Path(metric).is_file():
            problems.append(f"eval.metrics = {metric}: no such file")
    if problems:
        raise ConfigError(problems)


def _check_base(config: RunConfig, problems: list[str]) -> None:
    base = config.base_model
    try:
        folder = local_folder(base.name)
        if folder is not None:
            length = config.training.max_length
            check_base_files(
                folder, trust_remote_code=base.trust_remote_code, max_length=None if length == "auto" else length
            )
    except FinetuneError as error:
        problems.append(str(error))


def _data_paths(config: RunConfig) -> list[Path]:
    held_out = config.data.eval if isinstance(config.data.eval, list) else []
    return [Path(file.path) for file in [*config.data.train, *held_out]]


def _with_path(message: str, path: Path) -> str:
    return message if path.name in message else f"{path}: {message}"


def _write_job(
    request: Submission, folder: JobFolder, kind: str, command: list[str], environment: dict[str, str], *, cwd: Path
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
            "tracking_uri": request.tracking_uri,
            "experiment_id": request.experiment_id,
            "attempt": 1,
            "started_by": ProcessId.of(os.getpid()).to_json(),
            "version": __version__,
        },
    )


def _create_run(request: Submission, folder: JobFolder, project: ProjectFolder) -> str:
    """The MLflow run with the tags that stock MLflow sets, and ours. Raises TrackingError."""
    import mlflow
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.utils import mlflow_tags as tags
    from mlflow.utils.string_utils import is_string_type

    parent = mlflow.active_run()
    values = {
        tags.MLFLOW_SOURCE_NAME: project.source,
        tags.MLFLOW_SOURCE_TYPE: "PROJECT",
        tags.MLFLOW_PROJECT_ENTRY_POINT: request.entry_point,
        tags.MLFLOW_PROJECT_BACKEND: "finetune",
        tags.MLFLOW_PROJECT_ENV: "local",
        tags.MLFLOW_USER: _user(),
        tags.MLFLOW_GIT_COMMIT: project.commit,
        tags.MLFLOW_GIT_REPO_URL: project.repository,
        tags.MLFLOW_GIT_BRANCH: project.branch,
        tags.MLFLOW_PARENT_RUN_ID: parent.info.run_id if parent else None,
        JOB_TAG: folder.id,
        HOST_TAG: socket.gethostname(),
        ATTEMPT_TAG: "1",
        HEARTBEAT_TAG: str(int(time.time())),
    }
    present = {key: value for key, value in values.items() if is_string_type(value)}
    client = MlflowClient(request.tracking_uri)
    try:
        if request.run_id is not None:
            for key, value in present.items():
                client.set_tag(request.run_id, key, value)
            client.update_run(request.run_id, status="RUNNING")
            return request.run_id
        run = client.create_run(request.experiment_id, tags=present, run_name=request.run_name)
    except MlflowException as error:
        raise TrackingError(f"tracking server {_without_secrets(request.tracking_uri)}: {_one_line(error)}") from error
    return str(run.info.run_id)


def _abandon(folder: JobFolder, supervisor: int) -> None:
    """Stops a worker whose run could not be created, and waits until it is gone, so that its folder can be removed."""
    folder.request_cancel("the run could not be created")
    state = folder.read("state")
    deadline = time.monotonic() + 5
    while state is None and time.monotonic() < deadline:
        time.sleep(0.05)
        state = folder.read("state")
    worker = ProcessId.from_json((state or {}).get("worker"))
    if worker is not None and worker.is_alive():
        os.killpg(worker.pid, 9)
    while ProcessId.of(supervisor).is_alive() and time.monotonic() < deadline + 10:
        time.sleep(0.05)


def _user() -> str:
    import getpass

    return getpass.getuser()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


def _without_secrets(uri: str) -> str:
    """A tracking URI without the user and password that it may carry."""
    head, separator, tail = uri.partition("://")
    return head + separator + tail.rpartition("@")[2]
