"""The page on the command line: every command with its arguments, options, defaults and exit codes."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator

import click

from gradio_app.arguments import new_parser
from mlflow_finetune_plugin.cli.main import PROGRAM, SECTIONS, cli
from reference_pages.markdown import code, page, sentence, table

_INTRODUCTION = f"""
`{PROGRAM} COMMAND --help` prints the same in a terminal, and `{PROGRAM} --version` prints the version.
Notes and progress go to standard error. Results go to standard output, as JSON with `--json`. Exit codes are on the page
[errors and exit codes](errors.md).
"""
_ENVIRONMENT = """
MLflow's own variables apply, first of all `MLFLOW_TRACKING_URI`; `HF_HOME` and `HF_HUB_OFFLINE` apply to Hugging Face's hub.
These are this package's:
"""
ENVIRONMENT = {
    "MLFLOW_FINETUNE_API_KEY": "The API key that `chat`, `playground`, `promote`, `votes` and the deployment client send to a router.",
    "MLFLOW_FINETUNE_JUDGE_API_KEY": "The API key that `votes --judge` sends to the judge's endpoint.",
    "MLFLOW_FINETUNE_HOME": "The folder for the jobs of runs and the logs of services (default: `~/.local/state/mlflow-finetune`).",
    "MLFLOW_FINETUNE_ON_BEHALF_OF": "The person whom a promotion or rollback records, when a service runs the command.",
    "FINETUNE_WEBHOOK_SECRET": "The secret of MLflow's webhooks; without it `serve` refuses webhooks.",
    "FINETUNE_ENGINE_KEY": "The key between the router and its Transformers engine; `serve` sets it.",
    "FINETUNE_RESOLVER_MODELS": "Registered models that vLLM's adapter resolver may load, separated by commas.",
    "FINETUNE_RESOLVER_STORE": "The folder of the resolver's fetched adapters (default: `~/.cache/mlflow-finetune/resolver`).",
    "FINETUNE_RESOLVER_TIMEOUT": "Seconds that the resolver waits for the registry.",
}
"""Every environment variable of this package; a test compares the names with the code."""


def render() -> str:
    """Return the page."""
    parts = []
    context = click.Context(cli, info_name=PROGRAM)
    for section, names in SECTIONS.items():
        parts.append(f"## {section}")
        for name in names:
            command = cli.get_command(context, name)
            assert command is not None
            parts += _command(command, click.Context(command, context, name))
    rows = ((code(name), meaning) for name, meaning in ENVIRONMENT.items())
    return page(
        "Command line",
        _INTRODUCTION,
        *parts,
        "## Environment variables",
        _ENVIRONMENT,
        table(("variable", "meaning"), rows),
    )


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f"### `{context.command_path.removeprefix(PROGRAM).strip()}`"
    if isinstance(command, click.Group):
        yield _help(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from _command(child, click.Context(child, context, name))
        return
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```text\n{context.command_path} {usage}\n```"
    yield _help(command)
    options = [option for option in command.params if isinstance(option, click.Option) and not option.hidden]
    if options:
        yield table(("option", "default", "meaning"), (_option(option, context) for option in options))
    if command.name == "playground":
        yield "It forwards these options to the page:"
        yield table(("option", "default", "meaning"), _page_options())


def _help(command: click.Command) -> str:
    return inspect.cleandoc((command.help or "").replace("\b\n", ""))


def _option(option: click.Option, context: click.Context) -> tuple[str, str, str]:
    metavar = "" if option.is_flag else f" {option.make_metavar(context)}"
    default, text = _split_default(option.help or "")
    if not default and option.show_default and not option.is_flag:
        default = code(str(option.get_default(context)))
    return ", ".join(code(f"{name}{metavar}") for name in option.opts), default, sentence(text)


def _page_options() -> Iterator[tuple[str, str, str]]:
    """Yield the options of ``python -m gradio_app`` that ``playground`` does not have itself."""
    for action in new_parser()._actions:
        if action.dest not in ("help", "endpoints", "model", "check") and action.option_strings:
            is_flag = isinstance(action, argparse._StoreTrueAction)
            metavar = "" if is_flag else f" {action.metavar}"
            default, text = _split_default((action.help or "").replace("%%", "%"))
            yield ", ".join(code(f"{name}{metavar}") for name in action.option_strings), default, sentence(text)


def _split_default(text: str) -> tuple[str, str]:
    """Return the default that a help text names at its end, and the text without it."""
    match = re.search(r"\s*\(default: (.*)\)\.?$", text)
    if match is None:
        return "", text
    default = match[1]
    return (code(default) if " " not in default else default), text[: match.start()]
