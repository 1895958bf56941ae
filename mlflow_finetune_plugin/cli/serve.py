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
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import ConfigError, MissingExtraError
from mlflow_finetune_plugin.serving.versions.names import http_address

if TYPE_CHECKING:
    from mlflow_finetune_plugin.serving.service import ServiceSettings

_DTYPES = ("float32", "bfloat16", "float16")
_STORE = "~/.cache/mlflow-finetune/serving"


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="NAME", help="registered models; their aliases are followed live")
    parser.add_argument("--engine", default="auto", choices=("auto", "vllm", "transformers"), help="default: auto")
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", *_DTYPES), help="of the engines (default: auto, each base's own)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1; another needs --api-key-file")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000")
    parser.add_argument("--api-key-file", type=Path, default=None, metavar="FILE", help="who may ask; see `keys`")
    parser.add_argument("--poll", type=float, default=1.0, metavar="SECONDS", help="between two looks (default: 1)")
    parser.add_argument(
        "--tell-every",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="between two words to the registry of failures and latencies (default: 60)",
    )
    parser.add_argument(
        "--store", type=Path, default=None, metavar="DIR", help=f"adapters on this disk (default: {_STORE})"
    )
    parser.add_argument("--max-store", type=int, default=None, metavar="BYTES", help="of all adapters in the store")
    parser.add_argument(
        "--base-model", type=Path, action="append", default=[], metavar="DIR", help="where a base is now"
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="let bases and tokenizers run Python code that they bring"
    )
    parser.add_argument("--max-body", type=int, default=1_000_000, metavar="BYTES", help="of a request (default: 1 MB)")
    parser.add_argument(
        "--max-loaded", type=int, default=64, help="versions in engines, unless more are meant by aliases"
    )
    parser.add_argument("--max-loras", type=int, default=4, help="adapters in one batch of vLLM (default: 4)")
    parser.add_argument(
        "--max-cpu-loras", type=int, default=16, help="adapters that vLLM keeps in memory (default: 16)"
    )
    parser.add_argument(
        "--max-rank", type=int, default=None, help="of later versions (default: the first one's, or 16)"
    )
    parser.add_argument(
        "--max-model-len", type=int, default=None, help="tokens of prompt and answer (default: the base's)"
    )
    parser.add_argument(
        "--max-num-seqs", type=int, default=32, help="answers at the same time per engine (default: 32)"
    )


def serve(namespace: argparse.Namespace) -> int:
    """Until Ctrl-C or SIGTERM, which let running answers end. Webhooks need FINETUNE_WEBHOOK_SECRET. Raises ConfigError."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # a look at a registry that is away must end
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        from mlflow_finetune_plugin.serving.engines.commands import EngineLimits
        from mlflow_finetune_plugin.serving.service import Service, ServiceSettings, ignore_hangup
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"serving needs {error.name}; fix: pip install 'mlflow-finetune[serve]' (vLLM), or 'mlflow-finetune[train]'"
        ) from error
    from mlflow import MlflowClient

    limits = EngineLimits(
        max_loras=namespace.max_loras,
        max_cpu_loras=namespace.max_cpu_loras,
        max_rank=namespace.max_rank,
        max_model_len=namespace.max_model_len,
        max_num_seqs=namespace.max_num_seqs,
    )
    settings = ServiceSettings(
        models=tuple(dict.fromkeys(namespace.models)),
        store=(namespace.store or Path(_STORE).expanduser()).resolve(),
        engine=namespace.engine,
        dtype=None if namespace.dtype == "auto" else namespace.dtype,
        host=namespace.host,
        port=namespace.port,
        api_key_file=namespace.api_key_file,
        poll_s=namespace.poll,
        tell_every_s=namespace.tell_every,
        base_models=tuple(path.resolve() for path in namespace.base_model),
        max_store=namespace.max_store,
        max_body=namespace.max_body,
        max_loaded=namespace.max_loaded,
        trust_remote_code=namespace.trust_remote_code,
        webhook_secret=os.environ.get("FINETUNE_WEBHOOK_SECRET") or None,
        limits=limits,
    )
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
