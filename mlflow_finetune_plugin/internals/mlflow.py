"""MLflow's internals: what ``mlflow run`` itself calls, and what its fluent functions read. MLflow has no public function for them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.internals.required import check_names, required

if TYPE_CHECKING:
    import click


def experiment_id() -> str:
    """Return the experiment that ``mlflow.set_experiment`` or the environment chose, else MLflow's default."""
    return str(required("mlflow.tracking.fluent", "_get_experiment_id")())


def is_experiment_set() -> bool:
    """Return whether this process called ``mlflow.set_experiment``."""
    return required("mlflow.tracking.fluent", "_active_experiment_id") is not None


def user_name() -> str:
    """Return the user as MLflow records it with a run."""
    return str(required("mlflow.tracking.context.default_context", "_get_user")())


def model_uri_parts(uri: str) -> Any:
    """Return ``name``, ``version``, ``alias`` and ``model_id`` of a ``models:/`` URI.

    Raises:
        MlflowException: It is another URI.
    """
    parts = required("mlflow.store.artifact.utils.models", "_parse_model_uri")(uri)
    check_names("mlflow", parts, ("name", "version", "alias", "model_id"))
    return parts


def check_param_name(name: str) -> None:
    """Raise MlflowException for a name that MLflow does not take as a param."""
    required("mlflow.utils.validation", "_validate_param_name")(name)


def project_with_entry(folder: Path, entry_point: str, parameters: Mapping[str, str]) -> tuple[Any, Any]:
    """Return the project of an MLproject file and an entry point that the file defines, with its parameters checked.

    Raises:
        ExecutionException: A parameter is missing.
        MlflowException: The file cannot be used.
    """
    project = required("mlflow.projects._project_spec", "load_project")(str(folder))
    check_names("mlflow", project, ("_entry_points", "docker_env"))
    entry = project._entry_points[entry_point]
    check_names("mlflow", entry, ("_validate_parameters", "compute_command", "parameters", "command"))
    entry._validate_parameters(parameters)
    return project, entry


def fetch_git_project(uri: str, version: str | None, folder: Path) -> None:
    """Fetch a git repository into a folder, and check out a commit, tag or branch of it.

    Raises:
        ExecutionException: The repository has no such version.
        git.exc.GitError: git cannot fetch it.
    """
    required("mlflow.projects.utils", "_fetch_git_repo")(uri, version, str(folder))


def run_command() -> click.Command | None:
    """Return the command ``mlflow run``; None if this process did not start as ``mlflow``."""
    return required("mlflow.cli", "run") if "mlflow.cli" in sys.modules else None
