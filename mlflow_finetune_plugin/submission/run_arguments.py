"""The arguments of ``mlflow-finetune run``, read alike by the command line and from an MLproject's command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError([f"mlflow-finetune run: {message}"])


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments, named as in ``mlflow run``."""
    parser.add_argument("project", nargs="?", default=".", help="project folder or git URI, default: this folder")
    parser.add_argument("-e", "--entry-point", default="main", help="lora, ...; see: mlflow-finetune methods")
    parser.add_argument(
        "-P", "--param-list", action="append", default=[], metavar="NAME=VALUE", help="override a leaf of finetune.yaml"
    )
    parser.add_argument("-v", "--version", default=None, help="git commit, tag or branch")
    parser.add_argument("-c", "--backend-config", default=None, metavar="JSON", help="for example '{\"detach\": true}'")
    parser.add_argument("--experiment-name", default=None)
    parser.add_argument("--run-name", default=None)


def run_arguments(namespace: argparse.Namespace) -> RunArguments:
    """The parsed arguments as a record. Raises ConfigError for a -P that is not NAME=VALUE or stands twice."""
    return RunArguments(
        project=namespace.project,
        entry_point=namespace.entry_point,
        parameters=run_parameters(namespace.param_list),
        version=namespace.version,
        backend_config=namespace.backend_config,
        experiment_name=namespace.experiment_name,
        run_name=namespace.run_name,
    )


def run_parameters(items: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` words as a mapping. Raises ConfigError for one that is none, or stands twice."""
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
    """Reads the words after ``mlflow-finetune run``. Raises ConfigError instead of ending the program."""
    parser = _Parser(prog="mlflow-finetune run", add_help=False)
    add_run_arguments(parser)
    return run_arguments(parser.parse_args(arguments))
