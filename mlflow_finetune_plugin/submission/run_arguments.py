"""The arguments of ``mlflow-finetune run``, read alike by the command line and from an MLproject's command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from mlflow_finetune_plugin.errors import ConfigError


@dataclass(frozen=True)
class RunArguments:
    """``mlflow-finetune run PROJECT -e NAME -P name=value ...``"""

    project: str
    entry_point: str
    parameters: dict[str, str]
    version: str | None
    backend_config: str | None
    experiment_name: str | None
    run_name: str | None


entry_point_option = click.option(
    "-e", "--entry-point", metavar="NAME", help="Entry point: lora, qlora, ... (see: mlflow-finetune methods)."
)
parameters_option = click.option(
    "-P",
    "--param-list",
    "parameters",
    multiple=True,
    metavar="NAME=VALUE",
    help="Override a key of finetune.yaml, e.g. -P learning_rate=2e-4. Can be repeated.",
)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Declare the arguments of ``run``, named as in ``mlflow run``."""
    options = (
        click.argument("project", default="."),
        entry_point_option,
        parameters_option,
        click.option("-v", "--version", metavar="REF", help="Git commit, tag or branch of the project."),
        click.option(
            "-c", "--backend-config", metavar="JSON", help="JSON object or .json file, e.g. '{\"detach\": true}'."
        ),
        click.option(
            "--experiment-name",
            metavar="NAME",
            help="MLflow experiment; created when it does not exist (default: the project's name).",
        ),
        click.option(
            "--run-name", metavar="NAME", help="Name of the MLflow run (default: for example lora-2026-11-22-1)."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def run_parameters(items: Sequence[str]) -> dict[str, str]:
    """Return ``NAME=VALUE`` words as a mapping. Raises ConfigError for a word of another form or a repeated name."""
    parameters: dict[str, str] = {}
    for item in items:
        name, separator, value = item.partition("=")
        if not separator or not name:
            raise ConfigError([f"-P {item}: expected NAME=VALUE"])
        if name in parameters:
            raise ConfigError([f"-P {name}: given twice"])
        parameters[name] = value
    return parameters


def parse_run_arguments(arguments: list[str]) -> RunArguments:
    """Read the words after ``mlflow-finetune run``. Raises ConfigError instead of ending the program."""
    command = click.Command("run", params=_PARAMS, add_help_option=False)
    try:
        values = command.make_context("mlflow-finetune run", list(arguments)).params
    except click.ClickException as error:
        raise ConfigError([f"mlflow-finetune run: {error.format_message()}"]) from error
    parameters = run_parameters(values.pop("parameters"))
    return RunArguments(**{**values, "entry_point": values["entry_point"] or "main"}, parameters=parameters)


@run_options
def _declared() -> None:
    """Carry the declarations of ``run_options`` for ``parse_run_arguments``."""


_PARAMS: list[click.Parameter] = list(reversed(_declared.__click_params__))  # type: ignore[attr-defined]
