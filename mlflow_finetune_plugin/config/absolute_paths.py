"""Make the relative paths of a recipe absolute. They start in the project folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.config.dataset_lists import listed_files
from mlflow_finetune_plugin.config.overrides import base_from, path_from, start_from
from mlflow_finetune_plugin.config.register_section import RegisterSettings
from mlflow_finetune_plugin.config.reward_options import absolute_rewards, has_rewards
from mlflow_finetune_plugin.config.sections import DataFileSettings, DataSettings, EvalSettings
from mlflow_finetune_plugin.methods import load_method

if TYPE_CHECKING:
    from mlflow_finetune_plugin.config.run_config import RunConfig


def resolve_paths(config: RunConfig, project: Path) -> RunConfig:
    """Return the same configuration with every path absolute. Relative paths of the recipe start in the project folder."""
    sections: dict[str, Any] = {
        "base_model": config.base_model,
        "data": config.data,
        "eval": config.eval,
        "register": config.register_as,
    }
    sections = resolve_section_paths(sections, project)
    if config.start_from is not None:
        sections["start_from"] = start_from(project, config.start_from)
    options = config.options
    if has_rewards(load_method("objective", config.objective).Options):
        options = absolute_rewards(options, project)
    return config.model_copy(update={**sections, "register_as": sections.pop("register"), "options": options})


def resolve_section_paths(sections: Mapping[str, Any], project: Path) -> dict[str, Any]:
    """Return sections of a recipe with every path absolute; relative ones start at the project folder."""
    resolve: dict[str, Callable[[Any, Path], Any]] = {
        "base_model": lambda base, folder: base.model_copy(update={"name": base_from(folder, base.name)}),
        "data": _absolute_data,
        "eval": _absolute_eval,
        "register": absolute_gate,
    }
    return {name: resolve[name](section, project) if name in resolve else section for name, section in sections.items()}


def absolute_gate(register: RegisterSettings | None, project: Path) -> RegisterSettings | None:
    """Return the section ``register`` with absolute paths of the gate's regression files."""
    if register is None or register.gate is None:
        return register
    regressions = [
        bound.model_copy(update={"data": path_from(project, bound.data)}) for bound in register.gate.regressions
    ]
    return register.model_copy(update={"gate": register.gate.model_copy(update={"regressions": regressions})})


def _absolute_data(data: DataSettings, project: Path) -> DataSettings:
    return data.model_copy(
        update={
            "train": _absolute_files(data.train, project) if data.train else data.train,
            "eval": _absolute_files(data.eval, project) if isinstance(data.eval, list) else data.eval,
            "chat_template": path_from(project, data.chat_template) if data.chat_template else None,
        }
    )


def _absolute_eval(settings: EvalSettings, project: Path) -> EvalSettings:
    metrics = settings.metrics
    if metrics != "auto":
        metrics = [path_from(project, m) if m.endswith(".py") else m for m in metrics]
    forgetting = path_from(project, settings.forgetting) if settings.forgetting else settings.forgetting
    return settings.model_copy(update={"forgetting": forgetting, "metrics": metrics})


def _absolute_files(files: list[DataFileSettings], project: Path) -> list[DataFileSettings]:
    absolute = [file.model_copy(update={"path": path_from(project, file.path)}) for file in files]
    return [listed for file in absolute for listed in listed_files(file)]
