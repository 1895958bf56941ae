"""``mlflow-finetune serve`` as its users have it: a process, spoken to over HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
from forked import ZYGOTE, start_module
from served_models import QUESTIONS

READY_S = 240
CHAT = "/v1/chat/completions"
T = TypeVar("T")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class ServingProcess:
    process: subprocess.Popen[bytes]
    port: int
    log: Path
    store: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def status(self) -> str:
        """``ready``, ``degraded`` or ``not ready``; ``silent`` while nobody listens."""
        try:
            return str(self.get("/readyz")[1]["status"])
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return "silent"

    def wait_for(self, *statuses: str, seconds: float = READY_S) -> str:
        deadline = time.monotonic() + seconds
        while (found := self.status()) not in statuses:
            said = self.log.read_text()[-3000:]
            assert self.process.poll() is None, f"it ended with {self.process.returncode}: {said}"
            assert time.monotonic() < deadline, f"{found} after {seconds} s: {said}"
            time.sleep(0.1)
        return found

    def end(self, sent: int = signal.SIGTERM, seconds: float = 60) -> int:
        if self.process.poll() is None:
            self.process.send_signal(sent)
        return self.process.wait(seconds)


def start_serving(folder: Path, tracking_uri: str, *arguments: str, **environment: str) -> ServingProcess:
    port = free_port()
    log = folder / f"serving-{port}.log"
    store = folder / "store"
    command = ["serve", *arguments]
    command += ["--port", str(port)] + ([] if "--store" in arguments else ["--store", str(store)])
    own = {"MLFLOW_TRACKING_URI": tracking_uri, "MLFLOW_REGISTRY_URI": tracking_uri}
    own |= {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    module, env = "mlflow_finetune_plugin.cli", {**os.environ, **own, **environment}
    with log.open("wb") as out:
        process = start_module(module, command, stdout=out, stderr=out, cwd=folder, env=env)
    return ServingProcess(process, port, log, store)


@contextmanager
def serving(folder: Path, tracking_uri: str, *arguments: str, **environment: str) -> Iterator[ServingProcess]:
    """Ready when it begins, ended when it is over."""
    service = start_serving(folder, tracking_uri, *arguments, **environment)
    try:
        service.wait_for("ready")
        yield service
    finally:
        try:
            service.end()
        finally:
            service.process.kill()
            service.process.wait()


def body(model: str, question: str = QUESTIONS[0], **more: Any) -> dict[str, Any]:
    """A chat request whose answer is the same every time."""
    messages = [{"role": "user", "content": question}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": 8, **more}


def ask(service: ServingProcess, model: str, *, timeout: float = 60, **more: Any) -> httpx.Response:
    return httpx.post(service.url + CHAT, json=body(model, **more), timeout=timeout)


def wait_until(found: Callable[[], T], seconds: float = 120) -> T:
    """The first true thing that ``found`` gives."""
    deadline = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return result


def marked(mark: str) -> list[psutil.Process]:
    """All that live of those started with ``FINETUNE_TEST=mark`` in their environment, whoever their parent is now.

    The environment of a fork is not visible from outside, so forks are found by their directory, which is ``mark``, too.
    """
    found = []
    for process in psutil.process_iter():
        try:
            is_fork = ZYGOTE.name in " ".join(process.cmdline()[:2])
            is_marked = process.cwd() == mark if is_fork else process.environ().get("FINETUNE_TEST") == mark
            if is_marked and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def engine_of(service: ServingProcess) -> psutil.Process:
    """The process of its engine: the one that listens on another port."""

    def is_engine(process: psutil.Process) -> bool:
        sockets = process.net_connections("tcp")
        return any(socket.status == psutil.CONN_LISTEN and socket.laddr.port != service.port for socket in sockets)

    (engine,) = filter(is_engine, marked(str(service.log.parent)))
    return engine
