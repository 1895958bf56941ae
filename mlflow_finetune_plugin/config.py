"""Recipe file + ``-P`` overrides + entry point -> one frozen RunConfig, with all faults in one answer.

An override names a leaf by its own name when only one section has it (``rank``, ``learning_rate``), or dotted
(``training.learning_rate``). ``base_model``, ``data``, ``eval_data`` and ``register`` on ``-P`` set the leaf that a
person means: ``base_model.name``, ``data.train``, ``data.eval``, ``register.name``. Paths in ``-P`` are relative to the
caller's directory, paths in the file to the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import Field

from mlflow_finetune_plugin.base_files import EMBEDDED
from mlflow_finetune_plugin.entry_points import entry_point as find_entry_point
from mlflow_finetune_plugin.errors import ConfigError, FinetuneError
from mlflow_finetune_plugin.evaluation.metric_modules import check_metric_name
from mlflow_finetune_plugin.faults import Origins, shown, unknown_key, validated
from mlflow_finetune_plugin.methods import load_method
from mlflow_finetune_plugin.settings import (
    BaseModelSettings,
    DataFileSettings,
    DataSettings,
    EvalSettings,
    RegisterSettings,
    Section,
    TrainingSettings,
)
from mlflow_finetune_plugin.yaml_source import Document, KeyPath, load_document, parse_value

RECIPE_FILE = "finetune.yaml"
SECTIONS: dict[str, type[Section]] = {
    "base_model": BaseModelSettings,
    "data": DataSettings,
    "training": TrainingSettings,
    "eval": EvalSettings,
    "register": RegisterSettings,
}
_SHORTHANDS: dict[str, KeyPath] = {
    "base_model": ("base_model", "name"),
    "data": ("data", "train"),
    "eval_data": ("data", "eval"),
    "register": ("register", "name"),
    "adaptation": ("adaptation",),
    "objective": ("objective",),
}
_NAME_PROBLEMS = re.compile(r"[/:@%#?\"'\\\x00-\x1f\x7f-\x9f\u2028\u2029]")


class RunConfig(Section):
    """Everything a run is told to do. Method options are kept apart: the adaptation's and the objective's."""

    entry_point: str
    adaptation: str
    objective: str
    base_model: BaseModelSettings = Field(default_factory=BaseModelSettings)
    data: DataSettings
    options: dict[str, Any] = Field(default_factory=dict)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    eval: EvalSettings = Field(default_factory=EvalSettings)
    register_as: RegisterSettings | None = Field(None, alias="register")

    def adaptation_options(self) -> Any:
        """The adaptation's own ``Options``, from the share of ``options`` that is its."""
        return _options_of(load_method("adaptation", self.adaptation), self.options)

    def objective_options(self) -> Any:
        """The objective's own ``Options``."""
        return _options_of(load_method("objective", self.objective), self.options)


def load_config(
    project: Path,
    entry_point: str,
    overrides: Mapping[str, str],
    *,
    caller: Path,
    folders: Mapping[str, Path] | None = None,
) -> RunConfig:
    """Reads ``finetune.yaml`` in the project (if there), applies the overrides and checks everything.

    ``folders`` names overrides whose relative paths start elsewhere than in ``caller``: those that an MLproject fills
    in. Raises ConfigError listing every fault, each with its place, key, value and nearest name.
    """
    verb = find_entry_point(entry_point)
    recipe = project / RECIPE_FILE
    document = load_document(recipe) if os.path.lexists(recipe) else Document({}, {})
    problems: list[str] = []
    origin = Origins(recipe, document)
    values = _file_values(document, origin, problems)
    values = {"adaptation": verb.adaptation, "objective": verb.objective, **values}
    given = _parse_overrides(overrides, problems)
    for path, value in given:
        if path in (("adaptation",), ("objective",)):
            values[path[0]] = value
    methods = _methods(values, problems)
    option_fields = _option_fields(methods)
    _apply_overrides(values, given, overrides, option_fields, dict(folders or {}), caller, origin, problems)
    if not isinstance(values.get("data"), dict) or "train" not in values["data"]:
        problems.append(f"no training data; fix: add data.train to {RECIPE_FILE} or -P data=FILE{_misnamed(project)}")
    config = _validate(values, entry_point, option_fields, methods, origin, problems)
    if problems or config is None:
        raise ConfigError(problems)
    return config


def _misnamed(project: Path) -> str:
    others = [name for name in ("finetune.yml", "Finetune.yaml", "finetune.json") if (project / name).exists()]
    return f" ({project / others[0]} is not read; fix: rename it to {RECIPE_FILE})" if others else ""


def _file_values(document: Document, origin: Origins, problems: list[str]) -> dict[str, Any]:
    known = [*SECTIONS, "options", "adaptation", "objective"]
    values: dict[str, Any] = {}
    for key, value in document.values.items():
        if key not in known:
            problems.append(unknown_key(origin.of((key,)), str(key), value, known))
        elif (key == "base_model" and isinstance(value, str)) or (key == "register" and isinstance(value, str)):
            values[key] = {"name": value}
        elif key == "data" and (isinstance(value, (str, list))):
            values[key] = {"train": value}
        elif value is not None:
            values[key] = value
    return values


def _parse_overrides(overrides: Mapping[str, str], problems: list[str]) -> list[tuple[KeyPath, Any]]:
    """Key paths where the name alone decides; bare leaf names stay one element and are placed later."""
    return [(_SHORTHANDS.get(name, tuple(name.split("."))), parse_value(text)) for name, text in overrides.items()]


def _methods(values: Mapping[str, Any], problems: list[str]) -> dict[str, ModuleType]:
    found: dict[str, ModuleType] = {}
    for kind in ("adaptation", "objective"):
        try:
            found[kind] = load_method(kind, str(values[kind]))
        except ConfigError as error:
            problems += error.problems
    return found


def _option_fields(methods: Mapping[str, ModuleType]) -> dict[str, str]:
    return {name: kind for kind, module in methods.items() for name in module.Options.model_fields}


def _apply_overrides(
    values: dict[str, Any],
    given: list[tuple[KeyPath, Any]],
    overrides: Mapping[str, str],
    option_fields: Mapping[str, str],
    folders: Mapping[str, Path],
    caller: Path,
    origin: Origins,
    problems: list[str],
) -> None:
    leaves = _leaves(option_fields)
    seen: dict[KeyPath, str] = {}
    for (path, value), name in zip(given, overrides, strict=True):
        if path in (("adaptation",), ("objective",)):
            origin.override(path, name)
            continue
        place = _place(path, name, value, leaves, problems)
        if place is None:
            continue
        if place in seen:
            problems.append(f"-P {name}: sets {'.'.join(map(str, place))}, as does -P {seen[place]}; fix: give one")
            continue
        seen[place] = name
        section = values.setdefault(str(place[0]), {})
        if not isinstance(section, dict):
            problems.append(f"-P {name}: section {place[0]} is not a mapping, so its leaf {place[1]} cannot be set")
            continue
        if _is_text(place) and isinstance(value, (bool, int, float)):  # a revision 7e12, a model called 2024
            value = overrides[name]
        values[str(place[0])] = {**section, str(place[1]): _caller_paths(place, value, folders.get(name, caller))}
        origin.override(place, name)


def _is_text(place: KeyPath) -> bool:
    model = SECTIONS.get(str(place[0]))
    return model is not None and model.model_fields[str(place[1])].annotation in (str, str | None)


def _leaves(option_fields: Mapping[str, str]) -> dict[str, list[KeyPath]]:
    leaves: dict[str, list[KeyPath]] = {}
    for section, model in SECTIONS.items():
        for name in model.model_fields:
            leaves.setdefault(name, []).append((section, name))
    for name in option_fields:
        leaves.setdefault(name, []).append(("options", name))
    return leaves


def _place(
    path: KeyPath, name: str, value: Any, leaves: Mapping[str, list[KeyPath]], problems: list[str]
) -> KeyPath | None:
    if len(path) == 2 and path in [place for places in leaves.values() for place in places]:
        return path
    if len(path) == 1 and len(leaves.get(str(path[0]), [])) == 1:
        return leaves[str(path[0])][0]
    if len(path) == 1 and str(path[0]) in leaves:
        choices = ", ".join(".".join(map(str, place)) for place in leaves[str(path[0])])
        problems.append(f"-P {name} = {shown(value)}: the name stands in several sections; fix: say which: {choices}")
        return None
    dotted = [".".join(map(str, place)) for places in leaves.values() for place in places]
    choices_ = [*_SHORTHANDS, *leaves] if len(path) == 1 else dotted
    problems.append(unknown_key(f"-P {name}", name, value, choices_))
    return None


def _caller_paths(place: KeyPath, value: Any, caller: Path) -> Any:
    """Relative paths on ``-P`` mean the caller's directory."""
    if place in (("data", "train"), ("data", "eval")):
        return _map_paths(value, caller)
    if place in (("eval", "forgetting"), ("data", "chat_template")) and isinstance(value, str):
        return _from(caller, value)
    if place == ("eval", "metrics"):
        metrics = (
            value
            if isinstance(value, list)
            else [part.strip() for part in str(value).split(",")]
            if value != "auto"
            else value
        )
        return (
            [_from(caller, m) if str(m).endswith(".py") else m for m in metrics]
            if isinstance(metrics, list)
            else metrics
        )
    if place == ("base_model", "name") and isinstance(value, str):
        return _base_from(caller, value)
    return value


def _map_paths(value: Any, folder: Path) -> Any:
    if isinstance(value, str):
        return _from(folder, value)
    if isinstance(value, list):
        return [_map_paths(item, folder) for item in value]
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        return {**value, "path": _from(folder, value["path"])}
    return value


def _from(folder: Path, path: str) -> str:
    """The path as seen from ``folder``; a URL stays what it is, so that it can be refused by its own name."""
    return path if "://" in path else str(folder / os.path.expanduser(path))


def _base_from(folder: Path, name: str) -> str:
    """A base model's folder as seen from ``folder``; a hub name stays what it is."""
    path = os.path.join(folder, os.path.expanduser(name))
    is_folder = name != EMBEDDED and (name.startswith((".", "~")) or os.path.isdir(path))
    return os.path.realpath(path) if is_folder else name


def _validate(
    values: dict[str, Any],
    entry_point: str,
    option_fields: Mapping[str, str],
    methods: Mapping[str, ModuleType],
    origin: Origins,
    problems: list[str],
) -> RunConfig | None:
    """Validates section by section, so that one broken section does not hide the faults of the next."""
    options = values.get("options", {})
    ready = len(methods) == 2
    if not isinstance(options, dict):
        problems.append(f"{origin.of(('options',))}: options = {shown(options)}: expected a mapping")
        ready = False
    elif ready:
        for key in [key for key in options if key not in option_fields]:
            problems.append(
                unknown_key(
                    origin.of(("options", key)), f"options.{key}", options[key], [f"options.{n}" for n in option_fields]
                )
            )
        for kind, module in methods.items():
            share = {key: value for key, value in options.items() if option_fields.get(key) == kind}
            ready &= validated(module.Options, share, ("options",), origin, problems) is not None
    sections: dict[str, Any] = {}
    for name, model in SECTIONS.items():
        if name not in values:
            continue
        if name == "data" and "train" not in (values[name] if isinstance(values[name], dict) else {}):
            continue
        sections[name] = validated(model, values[name], (name,), origin, problems)
    problems += _semantic_problems(sections, origin)
    if problems or not ready or any(section is None for section in sections.values()) or "data" not in sections:
        return None
    return RunConfig(
        entry_point=entry_point,
        adaptation=values["adaptation"],
        objective=values["objective"],
        options=options,
        **sections,
    )


def _semantic_problems(sections: Mapping[str, Any], origin: Origins) -> list[str]:
    """Faults that types do not tell, of the sections that are otherwise well formed."""
    problems: list[str] = []
    register, held_out = sections.get("register"), sections.get("eval")
    if register is not None:
        problems += [f"{origin.of(('register', 'name'))}: {fault}" for fault in register_name_problems(register.name)]
    for index, metric in enumerate(held_out.metrics if held_out is not None and held_out.metrics != "auto" else []):
        try:
            if not metric.endswith(".py"):  # files are looked for once paths are absolute
                check_metric_name(metric)
        except FinetuneError as error:
            problems.append(f"{origin.of(('eval', 'metrics', index))}: {error}")
    return problems


def register_name_problems(name: str) -> list[str]:
    """Why MLflow's registry, or the serving names ``NAME@ALIAS`` and ``NAME/VERSION``, could not carry this name."""
    if name == "base" or name.endswith(".promoting"):
        return [f"register.name = {name!r}: the name is reserved; fix: choose another"]
    if name != name.strip() or not name.strip("."):
        return [f"register.name = {shown(name)}: starts or ends with a blank, or is only dots; fix: remove them"]
    if found := _NAME_PROBLEMS.search(name):
        return [
            f"register.name = {shown(name)}: may not contain {found.group()!r}; fix: use letters, digits, '-', '_' and '.'"
        ]
    return []


def _options_of(module: ModuleType, options: Mapping[str, Any]) -> Any:
    return module.Options.model_validate(
        {key: value for key, value in options.items() if key in module.Options.model_fields}
    )


def resolve_paths(config: RunConfig, project: Path) -> RunConfig:
    """The same config with every path absolute; paths of the file are relative to the project folder."""
    data = config.data.model_copy(
        update={
            "train": _absolute_files(config.data.train, project),
            "eval": _absolute_files(config.data.eval, project)
            if isinstance(config.data.eval, list)
            else config.data.eval,
            "chat_template": _from(project, config.data.chat_template) if config.data.chat_template else None,
        }
    )
    metrics = config.eval.metrics
    held_out = config.eval.model_copy(
        update={
            "forgetting": _from(project, config.eval.forgetting) if config.eval.forgetting else config.eval.forgetting,
            "metrics": metrics
            if metrics == "auto"
            else [_from(project, m) if m.endswith(".py") else m for m in metrics],
        }
    )
    base = config.base_model.model_copy(update={"name": _base_from(project, config.base_model.name)})
    return config.model_copy(update={"data": data, "eval": held_out, "base_model": base})


def _absolute_files(files: list[DataFileSettings], project: Path) -> list[DataFileSettings]:
    return [file.model_copy(update={"path": _from(project, file.path)}) for file in files]
