"""``mlflow-finetune chat``: talk to a registered model in the terminal."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import httpx

from mlflow_finetune_plugin.credentials.router_key import ROUTER_KEY
from mlflow_finetune_plugin.errors import ConfigError, EngineError, ServingError
from mlflow_finetune_plugin.store.clients import command_client
from mlflow_finetune_plugin.store.model_ref import ModelRef, parse_model_ref
from mlflow_finetune_plugin.store.names import CHALLENGER, CHAMPION, SPLIT_TAG
from mlflow_finetune_plugin.store.registered_model import read_model, registry_faults

_NEW, _EXIT = "/new", ("/exit", "/quit")
_TIMEOUT_S = 120.0


@click.command()
@click.argument("model")
@click.option(
    "--endpoint",
    metavar="URL",
    help=f"OpenAI-compatible endpoint, ends in /v1; its API key is read from {ROUTER_KEY} (default: serve MODEL here).",
)
@click.option("--system", metavar="TEXT", help="System message of every conversation.")
@click.option("--max-tokens", type=int, help="Longest answer in tokens (default: the endpoint's own limit).")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 gives the likeliest answer.")
@click.option(
    "--engine",
    default="auto",
    type=click.Choice(("auto", "vllm", "transformers")),
    show_default=True,
    help="Engine that generates the answers, when no --endpoint is given.",
)
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for fetched adapters, when no --endpoint is given.",
)
def chat(
    model: str,
    endpoint: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float,
    engine: str,
    store: Path | None,
) -> int:
    """Chat with a registered model in the terminal.

    MODEL is my-bot, my-bot/1, my-bot@champion or a models:/ URI. Type /new for a new conversation and /exit to end.
    Each line of a piped input is one message.
    """
    reference = parse_model_ref(model)
    sampling: dict[str, float] = {"temperature": temperature}
    if max_tokens is not None:
        sampling["max_tokens"] = max_tokens
    if endpoint is not None:
        if engine != "auto" or store is not None:
            raise ConfigError(["--engine and --store cannot be combined with --endpoint; fix: drop one of them"])
        return _talk(endpoint.rstrip("/"), str(reference), system, sampling)
    from mlflow_finetune_plugin.cli.compare.playground import local_service, registered_model
    from mlflow_finetune_plugin.cli.compare.playground_processes import interruptions

    name = registered_model(reference.name)
    reference = _served(reference)
    try:
        with interruptions() as is_interrupted:  # only while the engine starts: a later Ctrl-C ends the conversation
            service = local_service(name, engine, store, is_interrupted)
        with service:
            return _talk(service.url, str(reference), system, sampling)
    except EngineError as error:
        print(f"mlflow-finetune: {error}", file=sys.stderr)
        return 1


def _served(reference: ModelRef) -> ModelRef:
    """Return what to ask for: the challenger where the router would refuse the bare name, which is for users' requests.

    Raises ConfigError where no version could answer, before an engine starts.
    """
    with registry_faults(reference.name):
        aliases, tags = read_model(command_client(), reference.name)
    if not reference.is_whole_model or CHAMPION in aliases or SPLIT_TAG in tags:
        return reference
    if CHALLENGER not in aliases:
        raise ConfigError([f"{reference.name}: has neither a champion nor a challenger; fix: {reference.name}/NUMBER"])
    print(f"No version is champion yet: the challenger, version {aliases[CHALLENGER]}, answers.", file=sys.stderr)
    return ModelRef(reference.name, alias=CHALLENGER)


def _talk(url: str, model: str, system: str | None, sampling: dict[str, float]) -> int:
    start = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # gives input() editing and history
        print(f"Chatting with {model}. {_NEW}: new conversation, {_EXIT[0]}: end.", file=sys.stderr)
    while True:
        try:
            text = input("> ") if is_terminal else input()
        except EOFError:
            return 0
        if text.strip() in _EXIT:
            return 0
        if text.strip() == _NEW:
            messages = list(start)
            continue
        if not text.strip():
            continue
        messages.append({"role": "user", "content": text})
        answer = ""
        for piece in stream_answer(url, model, messages, sampling):
            print(piece, end="", flush=True)
            answer += piece
        print(flush=True)
        messages.append({"role": "assistant", "content": answer})


def stream_answer(url: str, model: str, messages: list[dict[str, str]], sampling: dict[str, float]) -> Iterator[str]:
    """Yield the pieces of an answer as the endpoint streams them. Raises ServingError with the endpoint's own message."""
    key = os.environ.get(ROUTER_KEY)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    body = {"model": model, "messages": messages, "stream": True, **sampling}
    try:
        with httpx.stream(
            "POST", f"{url}/chat/completions", json=body, headers=headers, timeout=_TIMEOUT_S, trust_env=False
        ) as response:
            if response.status_code != httpx.codes.OK:
                response.read()
                raise ServingError(f"{url} refused {model}: {_refusal(response)}")
            for line in response.iter_lines():
                if line.startswith("data:") and line[5:].strip() != "[DONE]":
                    yield _piece(line[5:])
    except httpx.HTTPError as error:
        raise ServingError(f"{url} did not answer: {type(error).__name__}: {error}; fix: check the endpoint") from error


def _piece(data: str) -> str:
    event = json.loads(data)
    if "error" in event:
        raise ServingError(f"the endpoint ended the answer: {event['error'].get('message', event['error'])}")
    return "".join(choice.get("delta", {}).get("content") or "" for choice in event.get("choices", ()))


def _refusal(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}: {response.text[:300]}"
