"""Read an entry point from a project's MLproject: the project's own program, or a preset of ``mlflow-finetune run``.

MLflow does not check the file's structure and quotes what it logs. Here a broken file is one clear error, and the
logged parameters are the values that the user gave.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import Formatter
from typing import Any

from mlflow_finetune_plugin.errors import ConfigError, ProjectError
from mlflow_finetune_plugin.submission.run_arguments import RunArguments, parse_run_arguments

OWN_COMMAND = ["mlflow-finetune", "run"]
_NEVER_HERE = ("version", "backend_config", "experiment_name")  # of the outer command, decided before MLproject is read


@dataclass(frozen=True)
class OwnCommand:
    """An entry point of an MLproject that runs the project's own program."""

    command: str
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FinetuneCommand:
    """An MLproject entry point that calls ``mlflow-finetune run``: its arguments with the parameters filled in.

    ``from_caller`` names the ``-P`` whose value the user gave. The others come from the MLproject.
    """

    arguments: RunArguments
    from_caller: frozenset[str]


def declared_name(folder: Path) -> str | None:
    """Return the name that the folder's MLproject declares, if there is one. Raises ProjectError for a broken MLproject."""
    name = _values(folder).get("name")
    return name.strip() or None if isinstance(name, str) else None


def entry_names(folder: Path) -> list[str]:
    """Return the entry points that the folder's MLproject defines. Raises ProjectError for a broken MLproject."""
    return list(_entries(folder))


def mlproject_entry(
    folder: Path, entry_point: str, parameters: Mapping[str, str]
) -> OwnCommand | FinetuneCommand | None:
    """Return an entry point of the folder's MLproject; None if it does not define it. Raises ProjectError."""
    from mlflow.exceptions import ExecutionException, MlflowException

    from mlflow_finetune_plugin.internals.mlflow import project_with_entry

    if entry_point not in _entries(folder):
        return None
    where = f"{_mlproject(folder)}, entry point {entry_point!r}"
    try:
        project, entry = project_with_entry(folder, entry_point, parameters)
    except (ExecutionException, MlflowException) as error:
        raise ProjectError(f"{where}: {error}") from error
    if not _is_ours(entry.command) and project.docker_env:
        raise ProjectError(
            f"{where}: wants docker_env, and this backend runs commands in its own environment; fix: use MLflow's local backend"
        )
    template = _template(entry, parameters, where) if _is_ours(entry.command) else None
    try:
        return _own_command(entry, parameters) if template is None else _finetune_command(template, entry, parameters)
    except (ExecutionException, MlflowException) as error:
        raise ProjectError(f"{where}: {error}") from error
    except (KeyError, IndexError, AttributeError, ValueError) as error:
        raise ProjectError(
            f"{where}: the command's braces cannot be filled in ({type(error).__name__}: {error}); "
            "fix: declare the parameter they name, or double braces that are meant: {{ }}"
        ) from error


def _mlproject(folder: Path) -> Path | None:
    return next((path for path in sorted(folder.iterdir()) if path.name.lower() == "mlproject"), None)


def _entries(folder: Path) -> Mapping[str, Any]:
    """Return the entry points as written. MLflow does not check the shape of MLproject: it would fail with a traceback."""
    path, values = _mlproject(folder), _values(folder)
    entries: Any = values.get("entry_points", {})
    if not isinstance(entries, dict):
        raise ProjectError(f"{path}: entry_points: expected NAME: {{command: ...}}; fix: add one, or remove the key")
    for name, entry in entries.items():
        _check_entry(f"{path}: entry_points.{name}", entry)
    return entries


def _values(folder: Path) -> Mapping[str, Any]:
    """Return the MLproject's keys; none where there is no such file."""
    import yaml

    path = _mlproject(folder)
    if path is None:
        return {}
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ProjectError(
            f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}; fix: correct it"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ProjectError(f"{path}: cannot be read: {error}; fix: make it a YAML file") from error
    if not isinstance(values, dict):
        raise ProjectError(f"{path}: expected keys such as name and entry_points; fix: add them, or remove the file")
    return values


def _check_entry(where: str, entry: Any) -> None:
    if not isinstance(entry, dict) or not isinstance(entry.get("command"), str):
        raise ProjectError(f"{where}: no command; fix: write {{command: ...}}")
    parameters = entry.get("parameters", {})
    if not isinstance(parameters, dict):
        raise ProjectError(f"{where}.parameters: expected NAME: TYPE or NAME: {{type, default}}; fix: write it so")
    for name, value in parameters.items():
        if not isinstance(value, (str, dict)):
            raise ProjectError(f"{where}.parameters.{name}: expected a type or {{type, default}}; fix: write it so")


def _is_ours(command: str) -> bool:
    return command.split()[: len(OWN_COMMAND)] == OWN_COMMAND


def _own_command(entry: Any, parameters: Mapping[str, str]) -> OwnCommand:
    """Return the shell command with quoted values. Unlike MLflow's, the logged parameters are not quoted."""
    undeclared = {name: value for name, value in parameters.items() if name not in entry.parameters}
    return OwnCommand(entry.compute_command(dict(parameters), None), {**_filled_in(entry, parameters), **undeclared})


def _filled_in(entry: Any, parameters: Mapping[str, str]) -> dict[str, str]:
    return {name: str(parameters.get(name, parameter.default)) for name, parameter in entry.parameters.items()}


def _template(entry: Any, parameters: Mapping[str, str], where: str) -> RunArguments:
    """Return our own command before the parameters are filled in. It is split first, so that a value is never split or
    quoted.
    """
    try:
        template = parse_run_arguments(shlex.split(entry.command)[len(OWN_COMMAND) :])
    except (ConfigError, ValueError) as error:
        reason = "; ".join(error.problems) if isinstance(error, ConfigError) else str(error)
        raise ProjectError(f"{where}: {reason}; fix: correct its command") from error
    misplaced = [f"--{name.replace('_', '-')}" for name in _NEVER_HERE if getattr(template, name) is not None]
    if misplaced:
        raise ProjectError(f"{where}: {', '.join(misplaced)} in its command; fix: give it to mlflow run instead")
    twice = sorted(name for name in template.parameters if name in parameters and name not in entry.parameters)
    if twice:
        raise ProjectError(
            f"{where}: its command sets -P {', '.join(twice)} itself; fix: leave it out, or declare it as a parameter there"
        )
    return template


def _finetune_command(template: RunArguments, entry: Any, from_user: Mapping[str, str]) -> FinetuneCommand:
    values = _filled_in(entry, from_user)
    undeclared = {name: value for name, value in from_user.items() if name not in entry.parameters}
    parameters = {name: value.format(**values) for name, value in template.parameters.items()}
    from_caller = {name for name, value in template.parameters.items() if set(from_user) & set(_fields(value))}
    return FinetuneCommand(
        replace(
            template,
            project=template.project.format(**values),
            entry_point=template.entry_point.format(**values),
            run_name=template.run_name.format(**values) if template.run_name is not None else None,
            parameters={**parameters, **undeclared},
        ),
        frozenset(from_caller | set(undeclared)),
    )


def _fields(template: str) -> list[str]:
    return [name for _, name, _, _ in Formatter().parse(template) if name]
