"""The command line of ``python -m gradio_app``, generated from ``PlaygroundSettings``."""

from __future__ import annotations

import argparse
from dataclasses import MISSING, Field, fields
from typing import Any

from gradio_app.settings import Option, PlaygroundSettings
from mlflow_finetune_plugin.errors import ConfigError


def new_parser() -> argparse.ArgumentParser:
    """Return a parser with one option per setting, and ``--check`` and ``--open``."""
    parser = argparse.ArgumentParser(
        prog="python -m gradio_app", description="Compare models side by side in the browser, without their names."
    )
    for setting in fields(PlaygroundSettings):
        option: Option = setting.metadata["option"]
        if not option.metavar:
            parser.add_argument(option.flag, dest=setting.name, action="store_true", help=option.help)
            continue
        parser.add_argument(
            option.flag,
            dest=setting.name,
            action="append" if _is_repeatable(setting) else "store",
            metavar=option.metavar,
            help=_help(setting, option).replace("%", "%%"),
        )
    parser.add_argument("--check", action="store_true", help="check the arguments and exit")
    parser.add_argument("--open", action="store_true", help="open the page in the browser if there is a display")
    return parser


def read_settings(namespace: argparse.Namespace) -> PlaygroundSettings:
    """Return the settings that the arguments give. Raises ConfigError that lists every value that cannot be read."""
    values: dict[str, Any] = {}
    faults: list[str] = []
    for setting in fields(PlaygroundSettings):
        option: Option = setting.metadata["option"]
        argument = getattr(namespace, setting.name)
        try:
            if not option.metavar:
                values[setting.name] = argument
            elif _is_repeatable(setting):
                values[setting.name] = tuple(option.read(text) for text in argument or ())
            elif argument is not None:
                values[setting.name] = option.read(argument)
        except ValueError as error:
            faults.append(f"{option.flag}: {error}")
    if faults:
        raise ConfigError(faults)
    return PlaygroundSettings(**values)


def _is_repeatable(setting: Field[Any]) -> bool:
    return setting.default is MISSING or isinstance(setting.default, tuple)


def _help(setting: Field[Any], option: Option) -> str:
    if isinstance(setting.default, str | int):
        return f"{option.help} (default: {setting.default})"
    return option.help
