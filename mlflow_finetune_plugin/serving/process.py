"""A service as a child process, which ends with the process that started it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from mlflow_finetune_plugin.errors import EngineError
from mlflow_finetune_plugin.jobs.folder import jobs_home
from mlflow_finetune_plugin.serving.engines.engine import free_port
from mlflow_finetune_plugin.serving.local_services import addresses, headers
from mlflow_finetune_plugin.serving.registry_check import check_registry
from mlflow_finetune_plugin.serving.settings import ServiceSettings, check_settings, serve_arguments
from mlflow_finetune_plugin.serving.versions.names import http_address

LEASH = (sys.executable, "-m", "mlflow_finetune_plugin.serving.engines.leash")
_READY_S = 900.0
_ENDS_S = 60.0
_POLL_S = 0.2
_TAIL_CHARS = 1500
_MAX_LOGS = 5

OnProgress = Callable[[str], None]
"""Receives one line whenever what the service waits for changes."""


def serve(
    settings: ServiceSettings,
    *,
    ready_s: float = _READY_S,
    on_progress: OnProgress = lambda line: None,
    is_interrupted: Callable[[], bool] = lambda: False,
) -> RunningService:
    """Serve registered models in a child process. Returns when each alias answers or has a fault, and one answers.

    Use it as a context manager, or call ``close()``. The service also ends when this process ends, however it ends.

    Args:
        settings: The models and the options; ``port=0`` picks a free port.
        ready_s: Seconds to wait until the service can answer.
        on_progress: Receives one line whenever what the service waits for changes; an exception ends the service.
        is_interrupted: Is called while the service starts; True ends it.

    Raises:
        KeyboardInterrupt: ``is_interrupted`` returned True.
        ConfigError: The settings are not valid.
        TrackingError: There is no tracking store.
        EngineError: The service ended, or was not ready in time; the message has the end of its log.
    """
    service = start_service(settings, on_progress=on_progress)
    try:
        service.wait_until_ready(ready_s, on_progress, is_interrupted)
    except BaseException:
        service.close()
        raise
    return service


def start_service(settings: ServiceSettings, *, on_progress: OnProgress = lambda line: None) -> RunningService:
    """Start a service as ``serve`` does, without waiting for it. Raises ConfigError, TrackingError."""
    check_settings(settings)
    check_registry(on_progress)
    settings = dataclasses.replace(settings, port=settings.port or free_port())
    log = _new_log()
    secret = {"FINETUNE_WEBHOOK_SECRET": settings.webhook_secret or ""}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*LEASH, sys.executable, "-m", "mlflow_finetune_plugin.cli", *serve_arguments(settings)],
            stdin=subprocess.PIPE,  # the leash: it breaks when this process ends
            stdout=out,
            stderr=out,
            env={**os.environ, **addresses(), **secret},
            process_group=0,  # a Ctrl-C in this terminal reaches this process alone, which then ends the service
        )
    return RunningService(f"{http_address(settings.host, settings.port)}/v1", log, process)


@dataclass(frozen=True)
class RunningService:
    """A service that answers OpenAI's API at ``url`` until it is closed, or this process ends.

    Attributes:
        url: The base URL for OpenAI clients; it ends in ``/v1``.
        log: The file that the service logs to.
    """

    url: str
    log: Path
    process: subprocess.Popen[bytes] = field(repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the service; running answers may end first. Closing it again does nothing."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(_ENDS_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdin is not None:  # last, because the leash ends the service without letting answers end
            self.process.stdin.close()

    def status(self) -> str:
        """Return ``ready``, ``degraded``, ``not ready``, or ``ended``."""
        if self.process.poll() is not None:
            return "ended"
        readiness = self._readiness()
        return "not ready" if readiness is None else str(readiness.get("status", "not ready"))

    def check_alive(self) -> None:
        """Raise EngineError with the end of the log if the service has ended."""
        code = self.process.poll()
        if code is not None:
            code = code if code >= 0 else 128 - code  # as shells report a signal
            text = " ".join(self.log.read_text(encoding="utf-8", errors="replace")[-_TAIL_CHARS:].split())
            raise EngineError(f"the service ended with code {code}: {text or 'without a message'}; its log: {self.log}")

    def wait_until_ready(
        self,
        timeout_s: float = _READY_S,
        on_progress: OnProgress = lambda line: None,
        is_interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Wait until an alias answers and none is still loading. Raises EngineError when it ends or takes too long."""
        deadline = time.monotonic() + timeout_s
        missing = ""
        while time.monotonic() < deadline:
            if is_interrupted():
                raise KeyboardInterrupt
            self.check_alive()
            readiness = self._readiness()
            if readiness is not None and _is_settled(readiness):
                return
            still_missing = "the service to listen" if readiness is None else _missing(readiness)
            if still_missing != missing:
                missing = still_missing
                on_progress(f"waiting for {missing}")
            time.sleep(_POLL_S)
        raise EngineError(
            f"the service is not ready after {timeout_s:.0f} s, it waits for {missing}; its log: {self.log}"
        )

    def _readiness(self) -> dict[str, Any] | None:
        """Return what /readyz reports; None while the service does not listen."""
        try:
            address = self.url.removesuffix("/v1") + "/readyz"
            return dict(httpx.get(address, headers=headers(), timeout=5, trust_env=False).json())
        except (httpx.HTTPError, ValueError):
            return None


def _is_settled(readiness: Mapping[str, Any]) -> bool:
    """Return whether an alias answers, and each other one does, too, or has a fault.

    A service that has just started is also degraded: its first alias answers while the second one loads.
    """
    if readiness.get("status") != "degraded":
        return readiness.get("status") == "ready"
    engines, aliases = readiness.get("engines", ()), readiness.get("aliases", ())
    is_faulty = any(engine.get("fault") for engine in engines)
    return is_faulty or not any(alias.get("serves") is None and alias.get("fault") is None for alias in aliases)


def _missing(readiness: Mapping[str, Any]) -> str:
    engines, aliases = readiness.get("engines", ()), readiness.get("aliases", ())
    faults = [readiness.get("registry", {}).get("fault"), *(part.get("fault") for part in (*engines, *aliases))]
    fault = next((str(fault) for fault in faults if fault), None)
    if fault is not None:
        return f"this to be repaired: {fault[:300]}"
    if not aliases:
        return "the registry to list the model's aliases"
    if any(engine.get("state") != "ready" for engine in engines):
        return "the engine to start: " + ", ".join(f"{engine['engine']} on {engine['base']}" for engine in engines)
    return "the versions to be loaded and certified" if engines else "the versions to be fetched"


def _new_log() -> Path:
    """Return a new log file beside the last few ones."""
    folder = jobs_home() / "services"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for log in sorted(folder.glob("serving-*.log"))[: -_MAX_LOGS + 1]:
        log.unlink(missing_ok=True)
    return folder / f"serving-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{time.monotonic_ns() % 10**6:06}.log"
