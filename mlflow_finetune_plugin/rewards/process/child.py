"""The scoring process: it loads a target and scores what the trainer sends."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from mlflow_finetune_plugin.rewards.completion import Completion, PartScore
from mlflow_finetune_plugin.rewards.process.target import Description, Requests, ScoringTarget

Emit = Callable[[int | None, PartScore], None]
"""Receives the score of the completion at a position; at None: that of all completions that have none yet."""

_LONGEST_TEXT = 300
_LONGEST_REASON = 2000


class LoadedTarget(Protocol):
    """A target that can score."""

    description: Description
    file: str
    """The file of the user's code, whose line is named in messages."""

    def score(self, completions: Sequence[Completion], emit: Emit) -> None:
        """Score each completion and emit the scores."""


def serve(connection: socket.socket) -> None:
    """Load the target that comes first, then score until the trainer closes the connection."""
    requests = Requests(connection)
    owner = os.getpid()
    first = requests.receive()
    if first is None:
        return
    target: ScoringTarget = pickle.loads(first)
    try:
        loaded = _load(target)
    except BaseException as error:  # the user's code runs here, and may raise anything
        requests.send({"fault": fault_of(error, target.path or target.name)})
        return
    requests.send({"description": asdict(loaded.description)})

    def send(reply: dict[str, Any]) -> None:
        if os.getpid() != owner:  # a copy of this process that the user's code made with os.fork, and did not end
            os._exit(0)
        requests.send(reply)

    while (request := requests.receive()) is not None:
        _score(loaded, request, send)
        send({"done": True})


def _score(loaded: LoadedTarget, request: bytes, send: Callable[[dict[str, Any]], None]) -> None:
    def emit(position: int | None, score: PartScore) -> None:
        reason = score.reason[:_LONGEST_REASON] if score.reason else None
        send({"at": position, "value": score.value, "reason": reason, "fault": score.fault})

    try:
        completions = pickle.loads(request)
        loaded.score(completions, emit)
    except BaseException as error:  # also SystemExit and KeyboardInterrupt of the user's code
        emit(None, PartScore(fault=fault_of(error, loaded.file)))


def _load(target: ScoringTarget) -> LoadedTarget:
    if target.kind == "model":
        from mlflow_finetune_plugin.rewards.process.model import load_model

        return load_model(target)
    if target.kind == "scorer":
        from mlflow_finetune_plugin.rewards.process.scorer import load_scorer

        return load_scorer(target)
    from mlflow_finetune_plugin.rewards.process.function import load_function

    return load_function(target)


def fault_of(error: BaseException, file: str) -> str:
    """Return an exception in one line, with the line of the user's file that raised it, or else the last line."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((frame for frame in reversed(frames) if frame.filename == file), frames[-1] if frames else None)
    if isinstance(error, SyntaxError) and error.filename:
        place = f"{os.path.basename(error.filename)}:{error.lineno}: {(error.text or '').strip()}"
    elif frame is None or (isinstance(error, LoadFaultError) and frame.filename != file):
        place = ""
    else:
        place = f"{os.path.basename(frame.filename)}:{frame.lineno} in {frame.name}: {(frame.line or '').strip()}"
    text = _text_of(error)
    return f"{text}; at {place[:_LONGEST_TEXT]}" if place else text


def _text_of(error: BaseException) -> str:
    try:
        text = " ".join(str(error).split())[:_LONGEST_TEXT]
    except Exception:  # __str__ of the user's exception
        text = "an exception whose text cannot be made"
    if isinstance(error, LoadFaultError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class LoadFaultError(Exception):
    """A target cannot be used; the text says why and how to fix it, without the help of an exception's name."""


def import_file(path: str) -> Any:
    """Import a user's file under its own name, with its folder first in ``sys.path`` as for a script."""
    import importlib.util

    folder, name = os.path.split(path)
    sys.path.insert(0, folder)
    stem = name.removesuffix(".py")
    if not stem.isidentifier() or stem in sys.modules or stem in sys.stdlib_module_names:
        stem = f"rewards_of_{abs(hash(path))}"
    spec = importlib.util.spec_from_file_location(stem, path)
    if spec is None or spec.loader is None:
        raise LoadFaultError(f"{path} cannot be imported; fix: name a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[stem] = module  # for pickle and dataclasses
    spec.loader.exec_module(module)
    return module
