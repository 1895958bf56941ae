"""What ``-e promote`` is told to do, and the policy that a project's recipe holds now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.config import absolute_gate, read_recipe
from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.faults import unknown_key, validated
from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.overrides import base_from
from mlflow_finetune_plugin.register_settings import RegisterSettings
from mlflow_finetune_plugin.settings import Section


class PromotionConfig(Section):
    """What ``-e promote`` is told to do. ``policy``: folder of the recipe whose policy holds now; None takes the version's own."""

    entry_point: str
    model: str
    version: str | None = None
    to: str = "champion"
    accept_new_policy: bool = False
    endpoint: str | None = None
    base_model: str | None = None
    policy: str | None = None


def load_promotion_config(
    project: Path, entry_point: str, overrides: Mapping[str, str], *, caller: Path
) -> PromotionConfig:
    """As ``load_config``: of the recipe only ``register`` is read. Raises ConfigError."""
    problems: list[str] = []
    values, _ = read_recipe(project, problems)
    register = values.get("register")
    name = register.get("name") if isinstance(register, dict) else None
    has_policy = isinstance(register, dict) and register.get("gate") is not None
    known = ("model", "version", "to", "accept_new_policy", "endpoint", "base_model")
    problems += [
        unknown_key(f"-P {key}", key, text, list(known)) for key, text in overrides.items() if key not in known
    ]
    told: dict[str, Any] = {"model": name, **{key: text for key, text in overrides.items() if key in known}}
    if told.get("accept_new_policy", "false") not in ("true", "false"):
        problems.append(f"-P accept_new_policy = {told['accept_new_policy']}: expected true or false")
    if not isinstance(told["model"], str):
        problems.append("no registered model; fix: -P model=NAME, or register.name in the recipe")
    if problems:
        raise ConfigError(problems)
    if has_policy:
        load_policy(project)  # its faults are told before there is a run
    base = told.pop("base_model", None)
    accept = told.pop("accept_new_policy", "false") == "true"
    return PromotionConfig(
        entry_point=entry_point,
        accept_new_policy=accept,
        base_model=base_from(caller, str(base)) if base is not None else None,
        policy=str(project.absolute()) if has_policy else None,
        **told,
    )


def load_policy(project: Path) -> GatePolicy | None:
    """The policy that a project's recipe holds now, its paths absolute; None where it has none. Raises ConfigError."""
    problems: list[str] = []
    values, origin = read_recipe(project, problems)
    register = (
        validated(RegisterSettings, values["register"], ("register",), origin, problems)
        if "register" in values
        else None
    )
    if problems:
        raise ConfigError(problems)
    absolute = absolute_gate(register, project.absolute()) if isinstance(register, RegisterSettings) else None
    return absolute.gate if absolute is not None else None
