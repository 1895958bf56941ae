"""``mlflow-finetune playground``."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlflow_finetune_plugin.cli.compare.playground_processes import check_page, interruptions, run_page
from mlflow_finetune_plugin.cli.output import note
from mlflow_finetune_plugin.credentials.router_key import ROUTER_KEY
from mlflow_finetune_plugin.errors import ConfigError, EngineError, MissingExtraError, TrackingError, one_line
from mlflow_finetune_plugin.store.clients import (
    check_store_answers,
    check_store_exists,
    command_client,
    current_store_uris,
)
from mlflow_finetune_plugin.store.model_ref import model_name

if TYPE_CHECKING:
    from mlflow_finetune_plugin.serving.process import RunningService

_MOST_NAMES = 20
_MOST_MODELS = 1000
_PATH = click.Path(path_type=Path)


class _WithPageOptions(click.Command):
    """A command whose help also lists the options that it forwards to the page."""

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_paragraph()
        formatter.write(_page_help())


@click.command(cls=_WithPageOptions, context_settings={"ignore_unknown_options": True})
@click.option(
    "--endpoint",
    "endpoints",
    multiple=True,
    metavar="URL",
    help=f"OpenAI-compatible endpoint, ends in /v1; can be repeated. Its API key is read from {ROUTER_KEY} "
    "(default: the command serves --model itself).",
)
@click.option("--model", metavar="NAME", help="Registered model whose votes are recorded.")
@click.option(
    "--engine",
    default="auto",
    type=click.Choice(("auto", "vllm", "transformers")),
    show_default=True,
    help="Engine that serves --model, when no --endpoint is given.",
)
@click.option("--store", type=_PATH, metavar="DIR", help="Folder for fetched adapters, when no --endpoint is given.")
@click.argument("page_options", nargs=-1, type=click.UNPROCESSED, metavar="[MODEL] [PAGE OPTIONS]")
def playground(
    endpoints: tuple[str, ...], model: str | None, engine: str, store: Path | None, page_options: tuple[str, ...]
) -> int:
    """Compare two models blind in the browser, and vote.

    MODEL is the same as --model: my-bot (my-bot/1, my-bot@champion and models:/ URIs name the same model). Options of the
    page are listed below; this command forwards them to it.
    """
    model, page_options = _model_of(model, page_options)
    if importlib.util.find_spec("gradio") is None:
        raise MissingExtraError("the playground needs gradio; fix: pip install 'mlflow-finetune[playground]'")
    if endpoints and (engine != "auto" or store is not None):
        raise ConfigError(["--engine and --store cannot be combined with --endpoint; fix: drop one of them"])
    try:
        with interruptions() as is_interrupted:
            if endpoints:
                return run_page(page_arguments(endpoints, model, page_options), is_interrupted)
            return _serve_and_run(model, engine, store, page_options, is_interrupted)
    except KeyboardInterrupt:
        return 0
    except EngineError as error:  # not an error in the arguments, therefore not exit code 2
        print(f"mlflow-finetune: {error}", file=sys.stderr)
        return 1


def _model_of(option: str | None, arguments: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    """Return the registered model, from ``--model`` or the first argument, and the other arguments."""
    if arguments and not arguments[0].startswith("-"):
        if option is not None:
            raise ConfigError([f"{arguments[0]} and --model {option} both name the model; fix: drop one of them"])
        option, arguments = arguments[0], arguments[1:]
    return (None if option is None else model_name(option)), arguments


def page_arguments(endpoints: Sequence[str], model: str | None, page_options: Sequence[str]) -> list[str]:
    """Return the arguments of ``python -m gradio_app``. Keys are not among them: every user can read a process's
    arguments.
    """
    arguments = [f"--endpoint={url}" for url in endpoints]
    return arguments + ([f"--model={model}"] if model is not None else []) + list(page_options)


def _serve_and_run(
    name: str | None,
    engine: str,
    store: Path | None,
    page_options: Sequence[str],
    is_interrupted: Callable[[], bool],
) -> int:
    model = registered_model(name)
    if code := check_page(page_arguments(["http://127.0.0.1/v1"], model, page_options)):
        return code
    with local_service(model, engine, store, is_interrupted) as service:
        return run_page(page_arguments([service.url], model, page_options), is_interrupted, service)


def local_service(model: str, engine: str, store: Path | None, is_interrupted: Callable[[], bool]) -> RunningService:
    """Serve a registered model on a free port of this machine, and report on stderr what it waits for."""
    from mlflow_finetune_plugin.serving.process import serve
    from mlflow_finetune_plugin.serving.settings import service_settings

    settings = service_settings((model,), {"engine": engine, "store": store, "port": 0})
    service = serve(settings, on_progress=note, is_interrupted=is_interrupted)
    note(f"serving     {model} at {service.url}; its log: {service.log}")
    return service


def _page_help() -> str:
    """Return the page's own help, without the options that this command has itself."""
    shown = subprocess.run(
        [sys.executable, "-m", "gradio_app", "--help"],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    ).stdout
    options = shown.partition("options:")[2]
    entries = re.split(r"\n(?=  -)", options)
    own_options = ("  -h", "  --endpoint", "  --model", "  --check")
    return "Page options:\n" + "\n".join(
        entry for entry in entries if entry.strip() and not entry.startswith(own_options)
    )


def registered_model(name: str | None) -> str:
    """Return the registered model to serve: ``name``, or the only one. Raises ConfigError, TrackingError."""
    from mlflow.exceptions import MlflowException

    for uri in current_store_uris():
        check_store_exists(uri)
        check_store_answers(uri)
    try:
        models = command_client().search_registered_models(max_results=_MOST_MODELS)
    except MlflowException as error:
        raise TrackingError(f"the registry does not answer: {one_line(error)}") from error
    names = [str(model.name) for model in models]
    listed = ", ".join(names[:_MOST_NAMES]) + (" ..." if len(names) > _MOST_NAMES else "")
    if not names:
        raise ConfigError(
            [
                "no model is registered; fix: train one (mlflow run PROJECT -b finetune), or name another with --endpoint URL"
            ]
        )
    if name is None and len(names) > 1:
        raise ConfigError([f"several models are registered; fix: --model with one of: {listed}"])
    if name is not None and name not in names and len(names) < _MOST_MODELS:
        raise ConfigError([f"no registered model {name!r}; fix: --model with one of: {listed}"])
    return name or names[0]
