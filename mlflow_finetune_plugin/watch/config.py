"""The configuration of ``-e watch``, the policy in a project's recipe, and how new rows are read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.config.evaluation import (
    EvaluationConfig,
    load_evaluation_config,
    resolve_evaluation_paths,
)
from mlflow_finetune_plugin.config.overrides import base_from, path_from
from mlflow_finetune_plugin.config.problems import unknown_key
from mlflow_finetune_plugin.config.run_config import RECIPE_FILE, read_recipe, read_register
from mlflow_finetune_plugin.config.sections import DataFileSettings, DataSettings, HeldOutSettings
from mlflow_finetune_plugin.data.sources.locations import check_location, is_remote
from mlflow_finetune_plugin.data.sources.rows import peek
from mlflow_finetune_plugin.errors import ConfigError, DataError
from mlflow_finetune_plugin.gate.watch_policy import WatchPolicy
from mlflow_finetune_plugin.planning.preflight import check_evaluation_before_spend
from mlflow_finetune_plugin.section import Section

_NO_PROJECT = Path(os.devnull)
_ANY_MODEL = "models:/watched/1"


class WatchConfig(Section):
    """The configuration of ``-e watch``.

    ``project`` is the folder of the recipe with policy and data section; None means defaults.
    """

    entry_point: str
    model: str
    data: str | None = None
    act: bool = False
    base_model: str | None = None
    trust_code: bool = False
    project: str | None = None


def load_watch_config(project: Path, entry_point: str, overrides: Mapping[str, str], *, caller: Path) -> WatchConfig:
    """Read the configuration of ``-e watch``: the recipe's ``register`` section, ``data`` and ``eval`` for new rows,
    and overrides.

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
    known = ("model", "data", "act", "base_model", "trust_code")
    problems += [
        unknown_key(f"-P {key}", key, text, list(known)) for key, text in overrides.items() if key not in known
    ]
    values: dict[str, Any] = {"model": name, **{key: text for key, text in overrides.items() if key in known}}
    problems += [
        f"-P {key} = {values[key]}: expected true or false"
        for key in ("act", "trust_code")
        if values.get(key, "false") not in ("true", "false")
    ]
    if not isinstance(values["model"], str):
        problems.append("no registered model; fix: -P model=NAME, or register.name in the recipe")
    if problems:
        raise ConfigError(problems)
    load_watch_policy(project)  # reports faults before there is a run
    base, data = values.get("base_model"), values.get("data")
    config = WatchConfig(
        entry_point=entry_point,
        model=values["model"],
        data=path_from(caller, str(data)) if data is not None else None,
        act=values.get("act", "false") == "true",
        trust_code=values.get("trust_code", "false") == "true",
        base_model=base_from(caller, str(base)) if base is not None else None,
        project=str(project.absolute()) if (project / RECIPE_FILE).is_file() else None,
    )
    if config.data is not None:
        _check_new_rows(config.project, config.data, caller)
    return config


def _check_new_rows(project: str | None, data: str, caller: Path) -> None:
    """Check the new rows before there is a run. Raises ConfigError.

    Where the recipe names no columns, those of the champion's training apply. They are not known yet, so that only
    reading the file is checked.
    """
    if names_columns(project):
        rows_config(project, data, caller=caller)
        return
    for file in _files(_evaluation_config(project, data, caller, _ANY_MODEL)):
        try:
            check_location(file.path)
            if not is_remote(file.path):
                peek(Path(file.path))
        except DataError as error:
            raise ConfigError([str(error)]) from error


def load_watch_policy(project: Path) -> WatchPolicy | None:
    """Return the policy in a project's recipe; None where it has none. Raises ConfigError."""
    register = read_register(project)
    return register.watch if register is not None else None


def names_columns(project: str | None) -> bool:
    """Return whether the project's recipe names a layout or columns that hold for all of its files."""
    return bool({"layout", "columns"} & _data_keys(project))


def _data_keys(project: str | None) -> set[str]:
    if project is None:
        return set()
    values, _ = read_recipe(Path(project), [])
    data = values.get("data")
    return set(data) if isinstance(data, dict) else set()


def rows_config(
    project: str | None,
    data: str,
    *,
    caller: Path,
    model: str = _ANY_MODEL,
    trained: DataSettings | None = None,
) -> EvaluationConfig:
    """Return how to read the rows of ``data``: as ``-e evaluate`` would in this project, or as a training did.

    Args:
        project: Folder of the recipe; None means a project without one.
        data: A file, or another location that a recipe may name.
        caller: Folder in which a relative path of ``data`` starts.
        model: The model that is asked.
        trained: The ``data`` section of a training run, whose layout and columns then apply.

    Raises:
        ConfigError: The file or the recipe is not valid.
    """
    config = _evaluation_config(project, data, caller, model)
    if trained is not None:
        data_settings = _read_as(trained, config.data, keeps_overlength="overlength" in _data_keys(project))
        config = config.model_copy(update={"data": data_settings})
    check_evaluation_before_spend(config)
    return config


def _evaluation_config(project: str | None, data: str, caller: Path, model: str) -> EvaluationConfig:
    folder = Path(project) if project is not None else _NO_PROJECT
    config = load_evaluation_config(folder, "evaluate", {"model": model, "eval_data": data}, caller=caller)
    without_rewards = config.model_copy(update={"rewards": []})  # answers are compared by the policy's metrics
    return resolve_evaluation_paths(without_rewards, folder)


def _files(config: EvaluationConfig) -> list[DataFileSettings]:
    assert isinstance(config.data.eval, list)  # the override names a file
    return config.data.eval


def _read_as(trained: DataSettings, new: HeldOutSettings, *, keeps_overlength: bool) -> HeldOutSettings:
    """Return the settings of new rows with the layout and columns of the held-out rows of a training.

    Where the training read several files, the one of the same name decides, else the first.
    """
    files = trained.eval if isinstance(trained.eval, list) else trained.train
    rows = []
    for file in new.eval if isinstance(new.eval, list) else ():
        like = next((known for known in files if Path(known.path).name == Path(file.path).name), files[0])
        rows.append(like.model_copy(update={"path": file.path, "task": None, "weight": 1.0}))
    overlength = new.overlength if keeps_overlength else trained.overlength
    names = ("layout", "columns", "ignore", "prompt_template", "group")
    update = {name: getattr(trained, name) for name in names}
    return new.model_copy(update={**update, "eval": rows, "overlength": overlength})
