"""Start, find and end the deployments of this machine. Each is a file and a process."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    INVALID_STATE,
    RESOURCE_CONFLICT,
    RESOURCE_DOES_NOT_EXIST,
)

from mlflow_finetune_plugin.credentials.router_key import ROUTER_KEY
from mlflow_finetune_plugin.errors import without_secrets
from mlflow_finetune_plugin.jobs.folder import jobs_home
from mlflow_finetune_plugin.serving.versions.names import http_address

FLAVOR = "finetune"
_READY_S = 900.0
_END_S = 90.0
LOOPBACK = "127.0.0.1"


@dataclass
class Deployment:
    """A deployed service. ``started`` is the process's start time, which distinguishes it from a later process with the same id."""

    name: str
    model_uri: str
    model: str
    host: str
    port: int
    pid: int
    started: float
    tracking_uri: str
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return http_address(self.host, self.port)

    @property
    def process(self) -> psutil.Process | None:
        try:
            candidate = psutil.Process(self.pid)
            return (
                candidate
                if abs(candidate.create_time() - self.started) < 1 and candidate.status() != psutil.STATUS_ZOMBIE
                else None
            )
        except psutil.NoSuchProcess:
            return None

    @property
    def listens(self) -> bool:
        """Whether the deployment's own process listens on its port, and not another one that came later."""
        process = self.process
        if process is None:
            return False
        try:
            sockets = process.net_connections(kind="tcp")
        except psutil.NoSuchProcess:
            return False
        return any(s.status == psutil.CONN_LISTEN and s.laddr.port == self.port for s in sockets)

    def answering(self) -> Deployment:
        """Return this deployment. Raises MlflowException if it does not listen, so that no other process gets the request."""
        if self.process is None:
            raise MlflowException(f"deployment {self.name!r} is dead; fix: update or delete it", INVALID_STATE)
        if not self.listens:
            raise MlflowException(
                f"deployment {self.name!r} does not listen at port {self.port}; fix: wait until it is ready, "
                "or update or delete it",
                INVALID_STATE,
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return the deployment as MLflow's commands show it."""
        return {
            "name": self.name,
            "flavor": FLAVOR,
            "model_uri": self.model_uri,
            "model": self.model,
            "url": self.url + "/v1",
            "status": self.status(),
            "config": self.settings,
        }

    def status(self) -> str:
        """Return ``ready``, ``degraded``, ``not ready``, or ``dead`` if its process has ended."""
        if self.process is None:
            return "dead"
        if not self.listens:
            return "not ready"
        try:
            return str(httpx.get(self.url + "/readyz", timeout=5, trust_env=False).json()["status"])
        except httpx.HTTPError:
            return "not ready"


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Let one process change a deployment at a time. Raises MlflowException while another one does."""
    check_name(name)
    deployments_root().mkdir(parents=True, exist_ok=True)
    with (deployments_root() / f".{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MlflowException(
                f"deployment {name!r} is being created, updated or deleted by another process; fix: wait for it",
                RESOURCE_CONFLICT,
            ) from error
        yield


def start(
    name: str, model_uri: str, model: str, settings: dict[str, str], *, port: int, port_wait_s: float = 0.0
) -> Deployment:
    """Start a deployment, and return when its process has answered a request.

    Args:
        name: The deployment.
        model_uri: As the user gave it.
        model: The router's name for the model.
        settings: The options, by the names of ``-C``.
        port: The port to listen on.
        port_wait_s: Seconds to wait until the port is free.

    Raises:
        MlflowException: The service gives no answer; its process is ended.
    """
    folder = folder_of(name)
    host = settings.get("host", LOOPBACK)
    check_port(host, port, wait_s=port_wait_s)
    log = folder / "service.log"
    log.touch(mode=0o600)  # it names addresses, so only its owner may read it; the same is true of deployment.json
    environment = addresses()
    with log.open("ab") as out:
        process = subprocess.Popen(
            serve_command(model, {**settings, "port": str(port)}),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    started = psutil.Process(process.pid).create_time()
    deployment = Deployment(
        name,
        model_uri,
        model,
        host,
        port,
        process.pid,
        started,
        without_secrets(environment["MLFLOW_TRACKING_URI"]),
        settings,
    )
    record = folder / "deployment.json"
    record.touch(mode=0o600)
    record.write_text(json.dumps(asdict(deployment)), encoding="utf-8")
    try:
        _wait_for_answer(deployment, process, log, float(settings.get("timeout", _READY_S)))
    except BaseException:
        end(deployment)
        raise
    return deployment


def run_in_foreground(model: str, settings: Mapping[str, str]) -> int:
    """Serve until Ctrl-C, SIGTERM or SIGHUP, each passed on once. Returns the service's exit status."""
    process = subprocess.Popen(
        serve_command(model, settings),
        stdin=subprocess.DEVNULL,
        env={**os.environ, **addresses()},
        process_group=0,  # else the terminal sends Ctrl-C to it too, and a second one does not wait for answers
    )
    handed_on = {signal.SIGINT: signal.SIGINT, signal.SIGTERM: signal.SIGTERM, signal.SIGHUP: signal.SIGTERM}
    before = {
        number: signal.signal(number, lambda received, _: process.send_signal(handed_on[signal.Signals(received)]))
        for number in handed_on
    }
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def addresses() -> dict[str, str]:
    """Return the environment variables that give another process the tracking store and registry of this one."""
    import mlflow

    return {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(), "MLFLOW_REGISTRY_URI": mlflow.get_registry_uri()}


def serve_command(model: str, settings: Mapping[str, str]) -> list[str]:
    """Return the command that serves the registered model of ``NAME``, ``NAME@ALIAS`` or ``NAME/VERSION``."""
    registered = model.partition("@")[0].partition("/")[0]
    command = [sys.executable, "-m", "mlflow_finetune_plugin.cli", "serve", registered]
    for name, value in settings.items():
        option = f"--{name.replace('_', '-')}"
        if name == "trust_remote_code":
            command += [option] if value == "true" else []
        elif name != "timeout":
            command += [option, value]
    return command


def _wait_for_answer(deployment: Deployment, process: subprocess.Popen[bytes], log: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    reason = "it does not listen"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise MlflowException(f"deployment {deployment.name!r} ended with code {process.returncode}: {_tail(log)}")
        if not deployment.listens:
            time.sleep(0.2)
            continue
        try:
            body = {"model": deployment.model, "messages": [{"role": "user", "content": "?"}], "max_tokens": 1}
            answer = httpx.post(
                deployment.url + "/v1/chat/completions", json=body, headers=headers(), timeout=60, trust_env=False
            )
        except httpx.HTTPError:
            time.sleep(0.2)
            continue
        if answer.status_code == 200:
            if deployment.listens:
                return
            continue
        reason = str(answer.json()["error"]["message"])
        if answer.status_code in (401, 404):  # these do not change; a version that is still loading is 503
            break
        time.sleep(0.2)
    raise MlflowException(f"deployment {deployment.name!r} gives no answer: {reason}")


def end(deployment: Deployment) -> None:
    process = deployment.process
    if process is None:
        return
    process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs([process], timeout=_END_S)
    for survivor in alive:
        survivor.kill()
        psutil.wait_procs([survivor], timeout=10)


def check_port(host: str, port: int, *, wait_s: float = 0.0) -> None:
    """Raise MlflowException if the port is still in use after ``wait_s`` seconds."""
    deadline = time.monotonic() + wait_s
    while (fault := _port_fault(host, port)) is not None:
        if time.monotonic() >= deadline:
            raise MlflowException(
                f"port {port} of {host} cannot be listened on: {fault}; fix: -C port=NUMBER, a free one",
                RESOURCE_CONFLICT,
            )
        time.sleep(0.2)


def _port_fault(host: str, port: int) -> str | None:
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                # As the server does, because closed connections keep a port busy for a while.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _tail(log: Path) -> str:
    return " ".join(log.read_text(encoding="utf-8", errors="replace")[-1500:].split())


def deployments_root() -> Path:
    return jobs_home() / "deployments"


def folder_of(name: str) -> Path:
    check_name(name)
    return deployments_root() / name


def read(name: str) -> Deployment:
    try:
        return Deployment(**json.loads((folder_of(name) / "deployment.json").read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise MlflowException(
            f"no deployment {name!r}; fix: mlflow deployments list -t finetune", RESOURCE_DOES_NOT_EXIST
        ) from error


def check_name(name: str) -> None:
    if (
        not name
        or len(name) > 100
        or not all(c.isascii() and (c.isalnum() or c in "._-") for c in name)
        or name[0] == "."
    ):
        raise MlflowException(
            f"deployment name {name[:100]!r}: not valid; fix: use up to 100 letters, digits, . _ -",
            INVALID_PARAMETER_VALUE,
        )


def headers() -> dict[str, str]:
    key = os.environ.get(ROUTER_KEY)
    return {"Authorization": f"Bearer {key}"} if key else {}
