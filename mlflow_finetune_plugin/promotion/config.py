"""The configuration of ``-e promote``, and the policy in a project's recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.config.absolute_paths import absolute_gate
from mlflow_finetune_plugin.config.durations import seconds_of
from mlflow_finetune_plugin.config.overrides import base_from
from mlflow_finetune_plugin.config.problems import unknown_key
from mlflow_finetune_plugin.config.run_config import read_recipe, read_register
from mlflow_finetune_plugin.errors import ConfigError, GateError
from mlflow_finetune_plugin.gate.canary_policy import CanaryPolicy
from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.section import Section
from mlflow_finetune_plugin.store.names import CHAMPION

_CANARY = ("canary", "step", "least_answers", "failures_at_most")


class PromotionConfig(Section):
    """The configuration of ``-e promote``.

    ``policy`` is the folder of the recipe whose policy applies; None means the policy that the training recorded.
    ``canary``, ``step``, ``least_answers`` and ``failures_at_most`` are the arguments of ``canary_policy``.
    """

    entry_point: str
    model: str
    version: str | None = None
    to: str = CHAMPION
    accept_new_policy: bool = False
    endpoint: str | None = None
    base_model: str | None = None
    trust_code: bool = False
    policy: str | None = None
    canary: str | None = None
    step: str | None = None
    least_answers: str | None = None
    failures_at_most: str | None = None


def canary_policy(
    canary: str | None, step: str | None, least_answers: str | None, failures_at_most: str | None = None
) -> CanaryPolicy | None:
    """Return the policy of a canary; None without one.

    Args:
        canary: Rising percentages of the requests, for example ``5,25,50``.
        step: Shortest duration of a step, for example ``10m``.
        least_answers: Fewest answers per step, a whole number.
        failures_at_most: Share of answers that may fail, for example ``0.05``.

    Raises:
        ConfigError: With every value that is not valid.
    """
    if canary is None:
        given = {"step": step, "least answers": least_answers, "failures at most": failures_at_most}
        options = [name for name, text in given.items() if text is not None]
        if options:
            raise ConfigError([f"{' and '.join(options)} without canary; fix: canary 5,25,50, or leave them out"])
        return None
    settings: dict[str, Any] = {}
    problems = []
    try:
        settings["steps"] = tuple(float(part.strip().removesuffix("%")) for part in canary.split(","))
    except ValueError:
        problems.append(f"canary {canary!r}: expected percentages; fix: rising ones, e.g. 5,25,50")
    try:
        if step is not None:
            settings["step_s"] = seconds_of(step)
    except ValueError as error:
        problems.append(f"canary step {error}")
    if least_answers is not None and not least_answers.isdecimal():
        problems.append(f"least answers {least_answers!r}; fix: a number from 1")
    elif least_answers is not None:
        settings["least_answers"] = int(least_answers)
    try:
        if failures_at_most is not None:
            settings["failures_at_most"] = float(failures_at_most)
    except ValueError:
        problems.append(f"failures at most {failures_at_most!r}; fix: a share between 0 and 0.5, e.g. 0.05")
    if problems:
        raise ConfigError(problems)
    try:
        return CanaryPolicy(**settings)
    except GateError as error:
        raise ConfigError([str(error)]) from error


def load_promotion_config(
    project: Path, entry_point: str, overrides: Mapping[str, str], *, caller: Path
) -> PromotionConfig:
    """Read the configuration of ``-e promote``: the recipe's ``register`` section and the overrides.

    Args:
        project: The project folder.
        entry_point: The name of the operation.
        overrides: The ``-P`` parameters, as text.
        caller: Folder in which the relative paths of overrides start.

    Raises:
        ConfigError: With every problem.
    """
    problems: list[str] = []
    recipe, _ = read_recipe(project, problems)
    register = recipe.get("register")
    name = register.get("name") if isinstance(register, dict) else None
    has_policy = isinstance(register, dict) and register.get("gate") is not None
    known = ("model", "version", "to", "accept_new_policy", "endpoint", "base_model", "trust_code", *_CANARY)
    problems += [
        unknown_key(f"-P {key}", key, text, list(known)) for key, text in overrides.items() if key not in known
    ]
    values: dict[str, Any] = {"model": name, **{key: text for key, text in overrides.items() if key in known}}
    switches = ("accept_new_policy", "trust_code")
    problems += [
        f"-P {key} = {values[key]}: expected true or false"
        for key in switches
        if values.get(key, "false") not in ("true", "false")
    ]
    try:
        canary_policy(*(values.get(key) for key in _CANARY))
    except ConfigError as error:
        problems += [f"-P {problem}" for problem in error.problems]
    if not isinstance(values["model"], str):
        problems.append("no registered model; fix: -P model=NAME, or register.name in the recipe")
    if problems:
        raise ConfigError(problems)
    if has_policy:
        load_policy(project)  # reports faults before there is a run
    base = values.pop("base_model", None)
    is_on = {key: values.pop(key, "false") == "true" for key in switches}
    return PromotionConfig(
        entry_point=entry_point,
        base_model=base_from(caller, str(base)) if base is not None else None,
        policy=str(project.absolute()) if has_policy else None,
        **is_on,
        **values,
    )


def load_policy(project: Path) -> GatePolicy | None:
    """Return the policy in a project's recipe, with absolute paths; None where it has none. Raises ConfigError."""
    absolute = absolute_gate(read_register(project), project.absolute())
    return absolute.gate if absolute is not None else None
