"""The experiment and the name of a run whose user chose neither: the project's experiment, and for example ``lora-2026-11-22-1``."""

from __future__ import annotations

import os
import re
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.errors import TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_EXPERIMENT_ID = "0"
"""MLflow's experiment ``Default``, which it passes on when the user chose none."""

_CHOOSING_VARIABLES = ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID")
_SEARCHED_RUNS = 1000


def chosen_experiment(experiment_id: str, *, is_explicit: bool) -> str | None:
    """Return the experiment that the user chose, or None when it is MLflow's default for users who chose none.

    Args:
        experiment_id: What MLflow resolved.
        is_explicit: Whether the command line named an experiment. The environment and ``mlflow.set_experiment`` are
            checked here.
    """
    from mlflow_finetune_plugin.internals.mlflow import is_experiment_set

    is_chosen = (
        is_explicit
        or experiment_id != DEFAULT_EXPERIMENT_ID
        or is_experiment_set()
        or any(os.environ.get(name) for name in _CHOOSING_VARIABLES)
    )
    return experiment_id if is_chosen else None


def project_name(folder: Path, source: str) -> str:
    """Return the name in the folder's MLproject, else the folder's or the repository's own name.

    Args:
        folder: The project on this disk.
        source: Where it came from: a folder, or a git URI with ``#SUBFOLDER``.
    """
    from mlflow_finetune_plugin.submission.mlproject import declared_name

    last = Path(source).name if Path(source).is_absolute() else re.split(r"[/:#]", source.rstrip("/"))[-1]
    return declared_name(folder) or last.removesuffix(".git") or "finetune"


def find_experiment(client: MlflowClient, tracking_uri: str, name: str) -> str | None:
    """Return the id of the project's experiment; None when it does not exist yet.

    Raises:
        TrackingError: The experiment was deleted.
    """
    if tracking_uri.startswith("databricks"):
        return DEFAULT_EXPERIMENT_ID  # experiments there are named by workspace paths, which a project does not have
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return None
    if experiment.lifecycle_stage == "deleted":
        raise TrackingError(
            f"the project's experiment {name!r} was deleted; fix: mlflow experiments restore --experiment-id "
            f"{experiment.experiment_id}, or choose another with --experiment-name"
        )
    return str(experiment.experiment_id)


def project_experiment(client: MlflowClient, tracking_uri: str, name: str) -> str:
    """Return the id of the project's experiment, which is created when it does not exist. Raises as ``find_experiment``."""
    from mlflow.exceptions import MlflowException

    experiment_id = find_experiment(client, tracking_uri, name)
    if experiment_id is not None:
        return experiment_id
    try:
        return str(client.create_experiment(name))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        experiment_id = find_experiment(client, tracking_uri, name)  # another run of the project was faster
        if experiment_id is None:
            raise
        return experiment_id


def next_run_name(client: MlflowClient, experiment_id: str, entry_point: str, today: date) -> str:
    """Return ``ENTRY_POINT-DATE-N`` with the first N that is higher than those of the experiment's runs of that day.

    Two runs that start in the same moment may get the same name; MLflow distinguishes runs by their ids.
    """
    prefix = f"{entry_point}-{today.isoformat()}-"
    runs: list[Any] = client.search_runs(
        [experiment_id],
        f"attributes.run_name LIKE {_quoted(f'{prefix}%')}",
        max_results=_SEARCHED_RUNS,
        order_by=["attributes.start_time DESC"],
    )
    suffixes = [(run.info.run_name or "").removeprefix(prefix) for run in runs]
    return f"{prefix}{max((int(suffix) for suffix in suffixes if suffix.isdecimal()), default=0) + 1}"


def _quoted(text: str) -> str:
    return f'"{text}"' if "'" in text else f"'{text}'"
