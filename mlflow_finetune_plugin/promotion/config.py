"""What ``-e promote`` is told to do, and the policy that a project's recipe holds now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.config.durations import seconds_of
from mlflow_finetune_plugin.config.overrides import base_from
from mlflow_finetune_plugin.config.problems import unknown_key
from mlflow_finetune_plugin.config.run_config import absolute_gate, read_recipe, read_register
from mlflow_finetune_plugin.errors import ConfigError, GateError
from mlflow_finetune_plugin.gate.canary_policy import CanaryPolicy
from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.section import Section
from mlflow_finetune_plugin.store.names import CHAMPION

_CANARY = ("canary", "step", "least_answers")


class PromotionConfig(Section):
    """What ``-e promote`` is told to do. ``policy``: folder of the recipe whose policy holds now; None takes the version's own.

    ``canary``, ``step``, ``least_answers``: as ``canary_policy`` takes them.
    """

    entry_point: str
    model: str
    version: str | None = None
    to: str = CHAMPION
    accept_new_policy: bool = False
    endpoint: str | None = None
    base_model: str | None = None
    policy: str | None = None
    canary: str | None = None
    step: str | None = None
    least_answers: str | None = None


def canary_policy(canary: str | None, step: str | None, least_answers: str | None) -> CanaryPolicy | None:
    """``5,25,50`` (percent), ``10m`` per step, answers per step; None without a canary. Raises ConfigError."""
    if canary is None:
        given = [name for name, text in (("step", step), ("least answers", least_answers)) if text is not None]
        if given:
            raise ConfigError([f"{' and '.join(given)} without canary; fix: canary 5,25,50, or leave them out"])
        return None
    told: dict[str, Any] = {}
    problems = []
    try:
        told["steps"] = tuple(float(part.strip().removesuffix("%")) for part in canary.split(","))
    except ValueError:
        problems.append(f"canary {canary!r}: no percentages; fix: rising ones, e.g. 5,25,50")
    try:
        if step is not None:
            told["step_s"] = seconds_of(step)
    except ValueError as error:
        problems.append(f"canary step {error}")
    if least_answers is not None and not least_answers.isdecimal():
        problems.append(f"least answers {least_answers!r}; fix: a number from 1")
    elif least_answers is not None:
        told["least_answers"] = int(least_answers)
    if problems:
        raise ConfigError(problems)
    try:
        return CanaryPolicy(**told)
    except GateError as error:
        raise ConfigError([str(error)]) from error


def load_promotion_config(
    project: Path, entry_point: str, overrides: Mapping[str, str], *, caller: Path
) -> PromotionConfig:
    """As ``load_config``: of the recipe only ``register`` is read. Raises ConfigError."""
    problems: list[str] = []
    values, _ = read_recipe(project, problems)
    register = values.get("register")
    name = register.get("name") if isinstance(register, dict) else None
    has_policy = isinstance(register, dict) and register.get("gate") is not None
    known = ("model", "version", "to", "accept_new_policy", "endpoint", "base_model", *_CANARY)
    problems += [
        unknown_key(f"-P {key}", key, text, list(known)) for key, text in overrides.items() if key not in known
    ]
    told: dict[str, Any] = {"model": name, **{key: text for key, text in overrides.items() if key in known}}
    if told.get("accept_new_policy", "false") not in ("true", "false"):
        problems.append(f"-P accept_new_policy = {told['accept_new_policy']}: expected true or false")
    try:
        canary_policy(*(told.get(key) for key in _CANARY))
    except ConfigError as error:
        problems += [f"-P {problem}" for problem in error.problems]
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
    absolute = absolute_gate(read_register(project), project.absolute())
    return absolute.gate if absolute is not None else None
