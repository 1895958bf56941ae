"""Configure the operations evaluate, promote and watch, and check them before their worker starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.config.evaluation import load_evaluation_config, resolve_evaluation_paths
from mlflow_finetune_plugin.errors import ConfigError, TrackingError
from mlflow_finetune_plugin.planning.preflight import (
    check_evaluation_before_spend,
    check_promotion_before_spend,
)
from mlflow_finetune_plugin.promotion.config import load_promotion_config
from mlflow_finetune_plugin.store.names import CHALLENGER, CHAMPION
from mlflow_finetune_plugin.store.registered_model import read_model, registry_faults
from mlflow_finetune_plugin.store.registry import find_model
from mlflow_finetune_plugin.submission.mlflow_run import Submission, tracking_error
from mlflow_finetune_plugin.watch.config import load_watch_config


def operation_config(request: Submission, project: Path) -> dict[str, Any]:
    """Return the configuration of the request's operation, for its worker. Raises ConfigError, MoveError,
    TrackingError.
    """
    return {"evaluate": _evaluation, "promote": _promotion, "watch": _watch}[request.entry_point](request, project)


def _evaluation(request: Submission, project: Path) -> dict[str, Any]:
    from mlflow import MlflowClient

    config = load_evaluation_config(
        project, request.entry_point, request.parameters, caller=request.caller, folders=request.folders
    )
    config = resolve_evaluation_paths(config, project)
    check_evaluation_before_spend(config)
    try:
        model = find_model(MlflowClient(request.tracking_uri), config.model)
    except TrackingError as error:
        raise tracking_error(request, error) from error
    return config.model_copy(update={"model": model.uri}).model_dump(mode="json")


def _promotion(request: Submission, project: Path) -> dict[str, Any]:
    config = load_promotion_config(project, request.entry_point, request.parameters, caller=request.caller)
    check_promotion_before_spend()
    if config.version is None and CHALLENGER not in _aliases(request, config.model):
        raise ConfigError([f"{config.model}: has no alias {CHALLENGER!r}; fix: -P version=N"])
    return config.model_dump(mode="json")


def _watch(request: Submission, project: Path) -> dict[str, Any]:
    config = load_watch_config(project, request.entry_point, request.parameters, caller=request.caller)
    check_promotion_before_spend()
    if CHAMPION not in _aliases(request, config.model):
        raise ConfigError([f"{config.model}: has no alias {CHAMPION!r}; fix: -e promote, or -P model=NAME"])
    return config.model_dump(mode="json")


def _aliases(request: Submission, model: str) -> dict[str, str]:
    from mlflow import MlflowClient

    with registry_faults(model):
        return read_model(MlflowClient(request.tracking_uri), model)[0]
