"""Combine recipe, ``-P`` overrides and entry point into one frozen RunConfig, and list every problem at once.

Paths in ``-P`` start in the caller's folder, paths in the recipe in the recipe's folder.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from mlflow_finetune_plugin.base_models.settings import BaseModelSettings
from mlflow_finetune_plugin.config.entry_points import ENTRY_POINTS, Operation
from mlflow_finetune_plugin.config.entry_points import entry_point as find_entry_point
from mlflow_finetune_plugin.config.objective_problems import objective_problems
from mlflow_finetune_plugin.config.overrides import (
    Where,
    apply_overrides,
    apply_top_level,
    leaves_of,
    parse_overrides,
    start_from,
)
from mlflow_finetune_plugin.config.problems import Origins, shown, unknown_key, valid_part, validated
from mlflow_finetune_plugin.config.register_section import RegisterSettings
from mlflow_finetune_plugin.config.section_problems import section_problems
from mlflow_finetune_plugin.config.sections import (
    DataSettings,
    EvalSettings,
    HeldOutSettings,
    TrainingSettings,
)
from mlflow_finetune_plugin.config.yaml_source import Document, load_document
from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.methods import (
    Adaptation,
    Kind,
    Objective,
    RowForm,
    built_in_methods,
    load_method,
    precision_fault,
)
from mlflow_finetune_plugin.section import Section

logger = logging.getLogger(__name__)

RECIPE_FILE = "finetune.yaml"
SECTIONS: dict[str, type[Section]] = {
    "base_model": BaseModelSettings,
    "data": DataSettings,
    "training": TrainingSettings,
    "eval": EvalSettings,
    "register": RegisterSettings,
}
EVALUATION_SECTIONS: dict[str, type[Section]] = {"data": HeldOutSettings, "eval": EvalSettings}
_KINDS: tuple[Kind, ...] = ("adaptation", "objective")
_TOP_LEVEL = ("adaptation", "objective", "resume", "start_from")


class RunConfig(Section):
    """The configuration of a training run. The options of the adaptation and those of the objective are separate."""

    entry_point: str
    adaptation: str
    objective: str
    base_model: BaseModelSettings = Field(default_factory=BaseModelSettings)
    data: DataSettings
    options: dict[str, Any] = Field(default_factory=dict)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    eval: EvalSettings = Field(default_factory=EvalSettings)
    register_as: RegisterSettings | None = Field(None, alias="register")
    resume: str | None = None
    start_from: str | None = None
    """The version whose adapter the training continues; None for a new adapter."""
    is_adaptation_default: bool = False
    """Whether the adaptation is the entry point's, which that of the start version replaces."""

    def adaptation_options(self) -> Any:
        """Return the adaptation's ``Options`` from its part of ``options``."""
        return _options_of(load_method("adaptation", self.adaptation), self.options)

    def objective_options(self) -> Any:
        """Return the objective's ``Options``."""
        return _options_of(load_method("objective", self.objective), self.options)


def load_config(
    project: Path,
    entry_point: str,
    overrides: Mapping[str, str],
    *,
    caller: Path,
    folders: Mapping[str, Path] | None = None,
) -> RunConfig:
    """Read ``finetune.yaml`` in the project (if there), apply the overrides and check everything.

    Args:
        project: The project folder.
        entry_point: An entry point that trains.
        overrides: The ``-P`` parameters, as text.
        caller: Folder in which the relative paths of overrides start.
        folders: Overrides whose relative paths start elsewhere, with that folder: those that an MLproject fills in.

    Raises:
        ConfigError: With every problem, each with its place, key, value and the nearest valid name.
    """
    draft = draft_config(project, entry_point, overrides, caller=caller, folders=folders)
    if draft.config is None:
        raise ConfigError(draft.problems)
    return draft.config


@dataclass(frozen=True)
class ConfigDraft:
    """What could be read of a request."""

    config: RunConfig | None
    """None when there are problems."""
    sections: dict[str, Any]
    """Every section that is valid at least in part, for further checks."""
    problems: list[str]
    form: RowForm = "answers"
    """The form of rows that the objective needs."""


def draft_config(
    project: Path,
    entry_point: str,
    overrides: Mapping[str, str],
    *,
    caller: Path,
    folders: Mapping[str, Path] | None = None,
) -> ConfigDraft:
    """Read as much of a request as is valid, and list its problems. The arguments are those of ``load_config``.

    Raises:
        ConfigError: For an entry point that does not train, and a recipe that cannot be read at all.
    """
    verb = find_entry_point(entry_point)
    if isinstance(verb, Operation):
        raise ConfigError([f"entry point {entry_point!r} trains nothing; fix: {', '.join(ENTRY_POINTS)}"])
    problems: list[str] = []
    values, origin = read_recipe(project, problems)
    assignments = parse_overrides(overrides)
    apply_top_level(values, assignments, _TOP_LEVEL, overrides, origin, problems)
    if "start_from" in overrides:
        values["start_from"] = start_from((folders or {}).get("start_from", caller), values["start_from"])
    is_default = "adaptation" not in values
    values = {"adaptation": verb.adaptation, "objective": verb.objective, **values}
    methods = _methods(values, problems)
    option_fields = _option_fields(methods)
    leaves = leaves_of(SECTIONS, option_fields if len(methods) == len(_KINDS) else _all_option_fields())
    where = Where(caller, dict(folders or {}))
    apply_overrides(values, assignments, overrides, leaves, SECTIONS, where, origin, problems)
    if not isinstance(values.get("data"), dict) or "train" not in values["data"]:
        problems.append(f"no training data; fix: add data.train to {RECIPE_FILE} or -P data=FILE{_misnamed(project)}")
    config = _validate(values, entry_point, option_fields, methods, origin, problems)
    if config is not None and config.start_from is not None:
        config = config.model_copy(update={"is_adaptation_default": is_default})
    sections = {
        name: valid_part(model, values[name]) if name in values else model()
        for name, model in SECTIONS.items()
        if name in values or name in ("base_model", "training", "eval")
    }
    valid = {name: section for name, section in sections.items() if section}
    form = load_method("objective", values["objective"]).ROWS if "objective" in methods else "answers"
    return ConfigDraft(None if problems else config, valid, problems, form)


def read_recipe(project: Path, problems: list[str]) -> tuple[dict[str, Any], Origins]:
    recipe = project / RECIPE_FILE
    document = load_document(recipe) if os.path.lexists(recipe) else Document({}, {})
    origin = Origins(recipe, document)
    return _file_values(document, origin, problems), origin


def _misnamed(project: Path) -> str:
    others = [name for name in ("finetune.yml", "Finetune.yaml", "finetune.json") if (project / name).exists()]
    return f" ({project / others[0]} is not read; fix: rename it to {RECIPE_FILE})" if others else ""


def _file_values(document: Document, origin: Origins, problems: list[str]) -> dict[str, Any]:
    known = [*SECTIONS, "options", "adaptation", "objective", "start_from"]
    values: dict[str, Any] = {}
    for key, value in document.values.items():
        if key not in known:
            problems.append(unknown_key(origin.of((key,)), str(key), value, known))
        elif (key == "base_model" and isinstance(value, str)) or (key == "register" and isinstance(value, str)):
            values[key] = {"name": value}
        elif key == "data" and (isinstance(value, (str, list))):
            values[key] = {"train": value}
        elif key == "start_from" and not (isinstance(value, str) and value.strip()):
            problems.append(
                f"{origin.of((key,))}: start_from = {shown(value)}: expected text; fix: models:/NAME/VERSION, "
                "models:/NAME@ALIAS, runs:/RUN_ID, or the folder of a logged model"
            )
        elif value is not None:
            values[key] = value
    return values


def _methods(values: Mapping[str, Any], problems: list[str]) -> dict[str, Adaptation | Objective]:
    methods: dict[str, Adaptation | Objective] = {}
    for kind in _KINDS:
        try:
            methods[kind] = load_method(kind, str(values[kind]))
        except ConfigError as error:
            problems += error.problems
    return methods


def _all_option_fields() -> dict[str, str]:
    """Return the options of every built-in method: with an unknown method, its options are not reported as unknown too."""
    return {
        field: kind
        for kind in _KINDS
        for name in built_in_methods(kind)
        for field in load_method(kind, name).Options.model_fields
    }


def _option_fields(methods: Mapping[str, Adaptation | Objective]) -> dict[str, str]:
    return {name: kind for kind, module in methods.items() for name in module.Options.model_fields}


def _validate(
    values: dict[str, Any],
    entry_point: str,
    option_fields: Mapping[str, str],
    methods: Mapping[str, Adaptation | Objective],
    origin: Origins,
    problems: list[str],
) -> RunConfig | None:
    """Validate section by section, so that one broken section does not hide the problems of the next."""
    options = values.get("options", {})
    ready = len(methods) == 2
    valid_options: dict[str, Any] = {}
    if not isinstance(options, dict):
        problems.append(f"{origin.of(('options',))}: options = {shown(options)}: expected a mapping")
        ready = False
    elif ready:
        options = _without_other_methods(options, option_fields, origin)
        for key in [key for key in options if key not in option_fields]:
            problems.append(
                unknown_key(
                    origin.of(("options", key)), f"options.{key}", options[key], [f"options.{n}" for n in option_fields]
                )
            )
        for kind, module in methods.items():
            share = {key: value for key, value in options.items() if option_fields.get(key) == kind}
            valid_options[kind] = validated(module.Options, share, ("options",), origin, problems)
            ready &= valid_options[kind] is not None
    sections: dict[str, Any] = {}
    for name, model in SECTIONS.items():
        if name not in values:
            continue
        if name == "data" and "train" not in (values[name] if isinstance(values[name], dict) else {}):
            continue
        sections[name] = validated(model, values[name], (name,), origin, problems)
    problems += section_problems(sections, origin)
    if ready:
        objective = load_method("objective", values["objective"])
        problems += objective_problems(objective, values["objective"], valid_options["objective"], sections, origin)
        sections["base_model"] = _with_quantization(
            sections,
            load_method("adaptation", values["adaptation"]),
            values["adaptation"],
            origin,
            problems,
        )
    if problems or not ready or any(section is None for section in sections.values()) or "data" not in sections:
        return None
    return RunConfig(
        entry_point=entry_point,
        adaptation=values["adaptation"],
        objective=values["objective"],
        resume=values.get("resume"),
        start_from=values.get("start_from"),
        options=options,
        **sections,
    )


def _without_other_methods(
    options: dict[str, Any], option_fields: Mapping[str, str], origin: Origins
) -> dict[str, Any]:
    """Leave out the recipe's options for other methods, with a warning, because one recipe serves several entry points."""
    others = [key for key in options if key not in option_fields and origin.is_of_file(("options", key))]
    known = {
        field: f"{kind} {name}"
        for kind in (("adaptation", "objective") if others else ())
        for name in reversed(built_in_methods(kind))
        for field in load_method(kind, name).Options.model_fields
    }
    for key in [key for key in others if key in known]:
        source = origin.of(("options", key))
        logger.warning("%s: options.%s is not read: it is an option of the %s", source, key, known[key])
    return {key: value for key, value in options.items() if key not in others or key not in known}


def _with_quantization(
    sections: Mapping[str, Any], adaptation: Adaptation, name: str, origin: Origins, problems: list[str]
) -> Any:
    """Return the base model section with the adaptation's default quantization if the recipe sets none."""
    base, quantization = sections.get("base_model", BaseModelSettings()), adaptation.QUANTIZATION
    if base is not None:
        dtype = None if base.dtype == "auto" else base.dtype
        fault = precision_fault(name, adaptation, quantization=base.quantization, dtype=dtype)
        if fault is not None:
            key, message = fault
            problems.append(f"{origin.of(('base_model', key))}: {message}")
    if base is None or quantization is None or base.quantization is not None:
        return base
    if "quantization" in base.model_fields_set:
        problems.append(
            f"{origin.of(('base_model', 'quantization'))}: base_model.quantization = None: {name} trains on a quantised base; "
            "fix: leave it out, or -P adaptation=lora"
        )
    return base.model_copy(update={"quantization": quantization})


def _options_of(module: Adaptation | Objective, options: Mapping[str, Any]) -> Any:
    return module.Options.model_validate(
        {key: value for key, value in options.items() if key in module.Options.model_fields}
    )


def read_register(project: Path) -> RegisterSettings | None:
    """Return the section ``register`` of a project's current recipe; None if it has none. Raises ConfigError."""
    problems: list[str] = []
    values, origin = read_recipe(project, problems)
    section = (
        validated(RegisterSettings, values["register"], ("register",), origin, problems)
        if "register" in values
        else None
    )
    if problems:
        raise ConfigError(problems)
    return section if isinstance(section, RegisterSettings) else None
