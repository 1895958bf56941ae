"""The backend config (``-c``): infrastructure only, never hyperparameters."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationError

from mlflow_finetune_plugin.config.problems import expected, shown
from mlflow_finetune_plugin.errors import ConfigError, unknown
from mlflow_finetune_plugin.section import Section

_MLFLOW_KEYS = ("ENV_MANAGER", "SYNCHRONOUS", "DOCKER_ARGS", "STORAGE_DIR", "build_image", "docker_auth")


class BackendSettings(Section):
    """The backend config."""

    launcher: str = Field("local", description="How workers are started: local.")
    detach: bool = Field(False, description="Return at once with the run id instead of waiting.")
    gpus_per_node: Annotated[int, Field(gt=0)] | None = Field(
        None, description="GPUs that share the training, one process each; default: all that are visible."
    )
    processes_per_node: Annotated[int, Field(gt=0)] | None = Field(
        None, description="Processes that share the training on a machine without GPU; default: 1."
    )

    def refuse_processes(self, why: str) -> None:
        """Raise ConfigError if several processes are requested although no training can share them."""
        for key in ("gpus_per_node", "processes_per_node"):
            if (getattr(self, key) or 1) > 1:
                raise ConfigError([f"-c {key} = {getattr(self, key)}: {why}; fix: leave it out"])


def backend_settings(backend_config: dict[str, Any]) -> BackendSettings:
    """Return the settings in ``-c``, without the keys that MLflow adds. Raises ConfigError with every problem."""
    manager = backend_config.get("ENV_MANAGER")
    if manager not in (None, "local"):
        raise ConfigError(
            [
                f"--env-manager {manager}: this backend trains in the environment it runs in, whose torch matches the GPU; fix: --env-manager local"
            ]
        )
    own_keys = {key: value for key, value in backend_config.items() if key not in _MLFLOW_KEYS}
    try:
        settings = BackendSettings.model_validate(own_keys)
    except ValidationError as error:
        known = list(BackendSettings.model_fields)
        raise ConfigError(
            [
                f"-c {'.'.join(map(str, fault['loc']))} = {shown(fault['input'])}: "
                + (
                    f"unknown key; known: {', '.join(known)}; fix: hyperparameters go to -P"
                    if fault["type"] == "extra_forbidden"
                    else f"expected {expected(BackendSettings, str(fault['loc'][0]))}"
                )
                for fault in error.errors()
            ]
        ) from None
    if settings.launcher != "local":
        raise ConfigError([unknown("launcher", settings.launcher, ["local"])])
    return settings
