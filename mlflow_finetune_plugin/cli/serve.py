"""``mlflow-finetune serve`` and ``keys``."""

from __future__ import annotations

import argparse
import asyncio
import errno
import logging
import os
import sys
from datetime import date
from pathlib import Path

from mlflow_finetune_plugin.errors import ConfigError, MissingExtraError
from mlflow_finetune_plugin.serving.registry_check import check_registry
from mlflow_finetune_plugin.serving.settings import SETTINGS, ServiceSettings, service_settings
from mlflow_finetune_plugin.serving.versions.names import http_address

_READERS = {"text": str, "path": Path, "integer": int, "seconds": float}


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the models, and one option for each setting of a service."""
    parser.add_argument("models", nargs="+", metavar="NAME", help="registered models; their aliases are followed live")
    for setting in SETTINGS:
        option = setting.option
        if option.kind == "switch":
            parser.add_argument(*option.flags, dest=setting.field_name, action="store_true", help=setting.help)
        else:
            parser.add_argument(
                *option.flags,
                dest=setting.field_name,
                type=_READERS[option.kind],
                action="append" if setting.is_repeatable else "store",
                choices=option.choices or None,
                metavar=option.metavar,
                help=setting.help,
            )


def serve(namespace: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM, which let running answers end. Webhooks need FINETUNE_WEBHOOK_SECRET.

    Raises:
        ConfigError: A setting is not valid, the registry has no such model, or the port cannot be listened on.
        TrackingError: There is no tracking store.
    """
    check_registry(lambda line: print(f"  waiting  {line}", file=sys.stderr, flush=True))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # a poll of a registry that is away must end
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
    settings = service_settings(tuple(namespace.models), vars(namespace), webhook_secret=secret)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    ignore_hangup()
    service = Service(settings, MlflowClient())
    service.check_models()
    try:
        asyncio.run(service.run(lambda: _tell_serving(settings)))
    except SystemExit as error:  # uvicorn's way to say that it cannot listen, while it handles what kept it
        if not isinstance(error.__context__, OSError):
            raise
        raise ConfigError([_port_fault(settings, error.__context__)]) from error
    return 0


def _tell_serving(settings: ServiceSettings) -> None:
    address = http_address(settings.host, settings.port)
    print(f"  serving  {', '.join(settings.models)} at {address}/v1", file=sys.stderr)


def _port_fault(settings: ServiceSettings, error: OSError) -> str:
    port = f"port {settings.port} of {settings.host} cannot be listened on"
    if error.errno == errno.EADDRINUSE:
        return f"{port}: it is in use; fix: --port with another number"
    return f"{port}: {error}; fix: --port with another number, or --host with an address of this machine"


def add_keys_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    add = actions.add_parser("add", help="make a key, write its hash to FILE, print it once")
    add.add_argument("file", type=Path)
    add.add_argument("name", help="whose key it is; shown in logs")
    add.add_argument(
        "--requests-per-minute", type=int, default=None, metavar="N", help="what it may ask (default: any number)"
    )
    add.add_argument(
        "--expires", type=_day, default=None, metavar="YYYY-MM-DD", help="its last day, in UTC (default: none)"
    )
    add.set_defaults(command=_add_key)


def _day(given: str) -> date:
    try:
        return date.fromisoformat(given)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{given!r} is no day; fix: YYYY-MM-DD, as 2027-01-31") from error


def _add_key(namespace: argparse.Namespace) -> int:
    from mlflow_finetune_plugin.credentials.api_keys import add_key

    print(
        add_key(
            namespace.file,
            namespace.name,
            requests_per_minute=namespace.requests_per_minute,
            expires=namespace.expires,
        )
    )
    return 0
