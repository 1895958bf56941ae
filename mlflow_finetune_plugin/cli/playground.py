"""``mlflow-finetune playground`` and ``users``."""

from __future__ import annotations

import argparse
import getpass
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from mlflow_finetune_plugin.credentials.router_key import ROUTER_KEY
from mlflow_finetune_plugin.errors import ConfigError, EngineError, MissingExtraError, TrackingError, one_line
from mlflow_finetune_plugin.store.clients import command_client

_MOST_NAMES = 20
_MOST_MODELS = 1000


def add_playground_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--endpoint",
        action="append",
        default=[],
        metavar="URL",
        help="OpenAI-compatible, ends in /v1, also several; their key from "
        f"{ROUTER_KEY} (default: serves --model itself)",
    )
    parser.add_argument("--model", default=None, metavar="NAME", help="the registered model whose votes are kept")
    parser.add_argument(
        "--side",
        action="append",
        default=[],
        metavar="NAME",
        help="a model that takes part, up to four (default: challenger against champion, or against the base)",
    )
    parser.add_argument("--port", type=int, default=7860, help="default: 7860")
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1; another needs a login")
    parser.add_argument("--auth-file", type=Path, default=None, metavar="FILE", help="who may come in; see `users`")
    parser.add_argument("--user-header", default=None, metavar="NAME", help="the header in which a proxy says who asks")
    parser.add_argument(
        "--trusted-proxy",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="whose header counts (default: this machine's)",
    )
    parser.add_argument(
        "--promoter", action="append", default=[], metavar="USER", help="of the header's users, who may promote"
    )
    parser.add_argument(
        "--public-host", action="append", default=[], metavar="NAME", help="the name under which a proxy is reached"
    )
    parser.add_argument(
        "--prompts", type=Path, action="append", default=[], metavar="FILE", help="prompts to walk through, JSONL"
    )
    parser.add_argument(
        "--keep-traces", default=None, metavar="DURATION", help="of answers without a vote, e.g. 30d (default: ever)"
    )
    parser.add_argument(
        "--engine", default="auto", choices=("auto", "vllm", "transformers"), help="without --endpoint (default: auto)"
    )
    parser.add_argument(
        "--store", type=Path, default=None, metavar="DIR", help="without --endpoint: adapters on this disk, as of serve"
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser, where there is a display")
    parser.set_defaults(command=_playground)


def add_users_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    add = actions.add_parser("add", help="ask for a password and write its hash to FILE; from stdin where it is piped")
    add.add_argument("file", type=Path)
    add.add_argument("name", help="who logs in; votes carry it")
    add.add_argument("--may-promote", action="store_true", help="may promote and roll back in the playground")
    add.set_defaults(command=_add_user)
    remove = actions.add_parser("remove", help="take a user out; a playground that runs shuts them out at once")
    remove.add_argument("file", type=Path)
    remove.add_argument("name")
    remove.set_defaults(command=_remove_user)


def page_arguments(namespace: argparse.Namespace, endpoints: list[str], model: str | None) -> list[str]:
    """For ``python -m gradio_app``; a key is not among them, all can read a process's arguments."""
    given: list[tuple[str, list[str]]] = [
        ("--endpoint", endpoints),
        ("--model", [model] if model is not None else []),
        ("--side", namespace.side),
        ("--port", [str(namespace.port)]),
        ("--host", [namespace.host]),
        ("--auth-file", _one(namespace.auth_file)),
        ("--user-header", _one(namespace.user_header)),
        ("--trusted-proxy", namespace.trusted_proxy),
        ("--promoter", namespace.promoter),
        ("--public-host", namespace.public_host),
        ("--prompts", [str(path) for path in namespace.prompts]),
        ("--keep-traces", _one(namespace.keep_traces)),
    ]
    arguments = [f"{option}={value}" for option, values in given for value in values]
    return arguments + [flag for flag in ("--open",) if getattr(namespace, flag[2:])]


def _playground(namespace: argparse.Namespace) -> int:
    if importlib.util.find_spec("gradio") is None:
        raise MissingExtraError("the playground needs gradio; fix: pip install 'mlflow-finetune[playground]'")
    from mlflow_finetune_plugin.cli.playground_processes import Interrupted, interruptions

    if namespace.endpoint and (namespace.engine != "auto" or namespace.store is not None):
        raise ConfigError(["--engine and --store are for serving without --endpoint; fix: leave one of them out"])
    try:
        with interruptions() as is_interrupted:
            return _run(namespace, is_interrupted)
    except Interrupted:
        return 0
    except EngineError as error:  # nobody's fault of arguments
        print(f"mlflow-finetune: {error}", file=sys.stderr)
        return 1


def _run(namespace: argparse.Namespace, is_interrupted: Callable[[], bool]) -> int:
    from mlflow_finetune_plugin.cli.playground_processes import check_page, run_page, serving

    if namespace.endpoint:
        return run_page(page_arguments(namespace, namespace.endpoint, namespace.model), is_interrupted)
    model = _model(namespace.model)
    if code := check_page(page_arguments(namespace, ["http://127.0.0.1/v1"], model)):
        return code
    settings = {"engine": namespace.engine}
    if namespace.store is not None:
        settings["store"] = str(namespace.store.expanduser().absolute())
    with serving(model, settings, is_interrupted, _say) as service:
        return run_page(page_arguments(namespace, [service.url], model), is_interrupted, service)


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def _model(asked: str | None) -> str:
    """The one to serve: that which is asked for, or the only one that there is. Raises ConfigError, TrackingError."""
    from mlflow.exceptions import MlflowException

    try:
        found = command_client().search_registered_models(max_results=_MOST_MODELS)
    except MlflowException as error:
        raise TrackingError(f"the registry cannot be asked: {one_line(error)}") from error
    names = [str(model.name) for model in found]
    told = ", ".join(names[:_MOST_NAMES]) + (" ..." if len(names) > _MOST_NAMES else "")
    if not names:
        raise ConfigError(
            ["no model is registered; fix: train one (mlflow run PROJECT -b finetune), or --endpoint URL of another"]
        )
    if asked is None and len(names) > 1:
        raise ConfigError([f"several models are registered; fix: --model with one of: {told}"])
    if asked is not None and asked not in names and len(names) < _MOST_MODELS:
        raise ConfigError([f"no model {asked!r} is registered; fix: --model with one of: {told}"])
    return asked or names[0]


def _one(value: object | None) -> list[str]:
    return [str(value)] if value is not None else []


def _add_user(namespace: argparse.Namespace) -> int:
    from mlflow_finetune_plugin.credentials.users import add_user

    add_user(namespace.file, namespace.name, _password(), may_promote=namespace.may_promote)
    print(f"{namespace.file}: {namespace.name} may come in{' and promote' if namespace.may_promote else ''}")
    return 0


def _remove_user(namespace: argparse.Namespace) -> int:
    from mlflow_finetune_plugin.credentials.users import remove_user

    remove_user(namespace.file, namespace.name)
    print(f"{namespace.file}: {namespace.name} is out")
    return 0


def _password() -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        raise ConfigError(["the two passwords differ; fix: type the same twice"])
    return password
