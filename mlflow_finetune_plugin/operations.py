"""What the operations evaluate, promote and watch are told to do, checked before a worker starts for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.config import load_evaluation_config, resolve_evaluation_paths
from mlflow_finetune_plugin.errors import ConfigError, TrackingError
from mlflow_finetune_plugin.preflight import check_evaluation_before_spend, check_promotion_before_spend
from mlflow_finetune_plugin.promotion.intent import CHAMPION
from mlflow_finetune_plugin.promotion.model_state import read_model, registry_faults
from mlflow_finetune_plugin.promotion_config import load_promotion_config
from mlflow_finetune_plugin.registry import CHALLENGER, find_model
from mlflow_finetune_plugin.tracking import without_secrets
from mlflow_finetune_plugin.watch_config import load_watch_config


def operation_config(
    name: str,
    project: Path,
    overrides: Mapping[str, str],
    *,
    caller: Path,
    folders: Mapping[str, Path],
    tracking_uri: str,
) -> dict[str, Any]:
    """The operation's config, for its worker. Raises ConfigError, MoveError, TrackingError."""
    if name == "evaluate":
        return _evaluation(name, project, overrides, caller, folders, tracking_uri)
    if name == "promote":
        return _promotion(name, project, overrides, caller, tracking_uri)
    return _watch(name, project, overrides, caller, tracking_uri)


def _evaluation(
    name: str,
    project: Path,
    overrides: Mapping[str, str],
    caller: Path,
    folders: Mapping[str, Path],
    tracking_uri: str,
) -> dict[str, Any]:
    from mlflow import MlflowClient

    config = load_evaluation_config(project, name, overrides, caller=caller, folders=folders)
    config = resolve_evaluation_paths(config, project)
    check_evaluation_before_spend(config)
    try:
        found = find_model(MlflowClient(tracking_uri), config.model)
    except TrackingError as error:
        told = " ".join(str(error).split())[:500]
        raise TrackingError(without_secrets(f"tracking server {tracking_uri}: {told}")) from error
    return config.model_copy(update={"model": found.uri}).model_dump(mode="json")


def _promotion(
    name: str, project: Path, overrides: Mapping[str, str], caller: Path, tracking_uri: str
) -> dict[str, Any]:
    config = load_promotion_config(project, name, overrides, caller=caller)
    check_promotion_before_spend()
    if config.version is None and CHALLENGER not in _aliases(config.model, tracking_uri):
        raise ConfigError([f"{config.model}: has no alias {CHALLENGER!r}; fix: -P version=N"])
    return config.model_dump(mode="json")


def _watch(name: str, project: Path, overrides: Mapping[str, str], caller: Path, tracking_uri: str) -> dict[str, Any]:
    config = load_watch_config(project, name, overrides, caller=caller)
    check_promotion_before_spend()
    if CHAMPION not in _aliases(config.model, tracking_uri):
        raise ConfigError([f"{config.model}: has no alias {CHAMPION!r}; fix: -e promote, or -P model=NAME"])
    return config.model_dump(mode="json")


def _aliases(model: str, tracking_uri: str) -> dict[str, str]:
    from mlflow import MlflowClient

    with registry_faults(model):
        return read_model(MlflowClient(tracking_uri), model)[0]
