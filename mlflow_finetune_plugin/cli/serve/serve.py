"""``mlflow-finetune serve``."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mlflow_finetune_plugin.errors import ConfigError, MissingExtraError
from mlflow_finetune_plugin.serving.registry_check import check_registry
from mlflow_finetune_plugin.serving.settings import SETTINGS, ServiceSettings, service_settings
from mlflow_finetune_plugin.serving.versions.names import http_address
from mlflow_finetune_plugin.store.model_ref import model_name

_TYPES: dict[str, Any] = {"text": str, "path": click.Path(path_type=Path), "integer": int, "seconds": float}


def setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Declare one option for each setting of a service."""
    for setting in reversed(SETTINGS):
        option = setting.option
        if option.kind == "switch":
            command = click.option(*option.flags, setting.field_name, is_flag=True, help=setting.help)(command)
        else:
            command = click.option(
                *option.flags,
                setting.field_name,
                type=click.Choice(option.choices) if option.choices else _TYPES[option.kind],
                multiple=setting.is_repeatable,
                metavar=option.metavar,
                help=setting.help,
            )(command)
    return command


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="NAME...")
@setting_options
def serve(models: tuple[str, ...], **options: Any) -> int:
    """Serve registered models through OpenAI's API and follow their aliases live.

    NAME is a registered model: my-bot. Other forms of its name (my-bot/1, my-bot@champion, models:/my-bot/1) serve the
    same model, because a service answers for all of its versions. The service runs until Ctrl-C or SIGTERM and lets running answers end. It accepts
    MLflow webhooks when FINETUNE_WEBHOOK_SECRET is set.
    """
    check_registry(lambda line: print(f"  waiting  {line}", file=sys.stderr, flush=True))
    # A registry poll must end soon when the registry does not answer.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        from mlflow_finetune_plugin.serving.service import Service, ignore_hangup
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"serving needs {error.name}; fix: pip install 'mlflow-finetune[serve]' (vLLM), or 'mlflow-finetune[train]'"
        ) from error
    from mlflow import MlflowClient

    secret = os.environ.get("FINETUNE_WEBHOOK_SECRET") or None
    settings = service_settings(tuple(map(model_name, models)), options, webhook_secret=secret)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns of each retry; the service reports an outage once
    ignore_hangup()
    service = Service(settings, MlflowClient())
    service.check_models()
    try:
        asyncio.run(service.run(lambda: _announce(settings)))
    except SystemExit as error:  # uvicorn exits when it cannot listen; the reason is the error that it handled
        if not isinstance(error.__context__, OSError):
            raise
        raise ConfigError([_port_problem(settings, error.__context__)]) from error
    return 0


def _announce(settings: ServiceSettings) -> None:
    address = http_address(settings.host, settings.port)
    print(f"  serving  {', '.join(settings.models)} at {address}/v1", file=sys.stderr)


def _port_problem(settings: ServiceSettings, error: OSError) -> str:
    port = f"port {settings.port} of {settings.host}"
    if error.errno == errno.EADDRINUSE:
        return f"{port} is in use; fix: --port with another number"
    return (
        f"cannot listen on {port}: {error}; fix: --port with another number, or --host with an address of this machine"
    )
