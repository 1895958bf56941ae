"""The playground as processes: the page, and the service behind it where nobody else serves. They end together."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from mlflow_finetune_plugin.errors import EngineError
from mlflow_finetune_plugin.jobs.folder import jobs_home
from mlflow_finetune_plugin.serving.engines.engine import free_port
from mlflow_finetune_plugin.serving.local_services import LOOPBACK, addresses, headers, serve_command
from mlflow_finetune_plugin.serving.versions.names import http_address

_READY_S = 900.0
_LOOK_S = 0.2
_PAGE_ENDS_S = 10.0
_SERVICE_ENDS_S = 60.0
_TAIL = 1500
_LOGS_KEPT = 5
_LEASH = (sys.executable, "-m", "mlflow_finetune_plugin.serving.engines.leash")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Service:
    """``log``: where what it says goes; nothing of it outlives this process."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path


class Interrupted(Exception):
    """Ctrl-C, SIGTERM or the terminal's end."""


@contextlib.contextmanager
def interruptions() -> Iterator[Callable[[], bool]]:
    """Signals are noted, and asked for: whoever waits here ends its children first."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    noted: list[int] = []
    before = {number: signal.signal(number, lambda found, _: noted.append(found)) for number in numbers}
    try:
        yield lambda: bool(noted)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_page(arguments: Sequence[str], is_interrupted: Callable[[], bool], behind: Service | None = None) -> int:
    """The page until it ends or a signal comes; its exit code. Raises EngineError when the service behind it dies."""
    page = _start(page_command(arguments))
    try:
        while page.poll() is None:
            if behind is not None:
                _check_alive(behind)
            if is_interrupted():
                return 0
            time.sleep(_LOOK_S)
        return _exit_code(page)
    finally:
        _end(page, _PAGE_ENDS_S)


@contextlib.contextmanager
def serving(model: str, settings: Mapping[str, str], is_interrupted: Callable[[], bool], say: Say) -> Iterator[Service]:
    """A service of its own on a free port of loopback, ready when this begins, ended when it is over.

    Raises EngineError when it gives no answer, and Interrupted.
    """
    port = free_port()
    log = _new_log()
    with log.open("wb") as out:
        command = serve_command(model, {**settings, "host": LOOPBACK, "port": str(port)})
        process = _start(command, out=out)
    service = Service(process, f"{http_address(LOOPBACK, port)}/v1", log)
    try:
        say(f"serving     {model} at {service.url}; its log: {log}")
        _wait_until_ready(service, is_interrupted, say)
        yield service
    finally:
        _end(process, _SERVICE_ENDS_S)


def page_command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "gradio_app", *arguments]


def check_page(arguments: Sequence[str]) -> int:
    """The page's own look at its arguments, before anything is spent; it tells its faults itself. 0: it has none."""
    return subprocess.run([*page_command(arguments), "--check"], stdin=subprocess.DEVNULL, check=False).returncode


def _wait_until_ready(service: Service, is_interrupted: Callable[[], bool], say: Say) -> None:
    deadline = time.monotonic() + _READY_S
    told = ""
    while time.monotonic() < deadline:
        if is_interrupted():
            raise Interrupted
        _check_alive(service)
        found = _readiness(service.url)
        if found is not None and found["status"] in ("ready", "degraded"):
            say(f"{found['status']:<11} {_engines(found)}")
            return
        waits_for = "the service to listen" if found is None else _missing(found)
        if waits_for != told:
            say(f"waiting for {waits_for}")
            told = waits_for
        time.sleep(_LOOK_S)
    raise EngineError(f"the service is not ready after {_READY_S:.0f} s, for {told} is missing; its log: {service.log}")


def _readiness(url: str) -> dict[str, Any] | None:
    try:
        address = url.removesuffix("/v1") + "/readyz"
        return dict(httpx.get(address, headers=headers(), timeout=5, trust_env=False).json())
    except (httpx.HTTPError, ValueError):
        return None


def _missing(found: Mapping[str, Any]) -> str:
    """In a few words; a fault that the service tells is one of them."""
    faults = [found.get("registry", {}).get("fault")]
    faults += [one.get("fault") for one in (*found.get("engines", ()), *found.get("aliases", ()))]
    said = next((str(fault) for fault in faults if fault), None)
    if said is not None:
        return f"what is broken to be mended: {said[:300]}"
    if not found.get("aliases"):
        return "the registry's word on the model"
    starting = [one for one in found.get("engines", ()) if one.get("state") != "ready"]
    if not starting and found.get("engines"):
        return "the versions to be loaded and compared with their training"
    return f"the engine to start ({_engines(found)})" if starting else "the versions to be fetched"


def _engines(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{one['engine']} on {one['base']}" for one in found.get("engines", ())) or "no engine yet"


def _start(command: Sequence[str], out: Any = None) -> subprocess.Popen[bytes]:
    """On the leash: when this process is killed, it ends too. In a group of its own: a Ctrl-C reaches this process alone."""
    return subprocess.Popen(
        [*_LEASH, *command],
        stdin=subprocess.PIPE,
        stdout=out,
        stderr=out,
        env={**os.environ, **addresses()},
        process_group=0,
    )


def _end(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Asked, and made to when it takes too long. Its pipe is let go last: the leash is for deaths."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _check_alive(service: Service) -> None:
    if service.process.poll() is None:
        return
    said = " ".join(service.log.read_text(encoding="utf-8", errors="replace")[-_TAIL:].split())
    code = _exit_code(service.process)
    raise EngineError(f"the service ended with code {code}: {said or 'it said nothing'}; its log: {service.log}")


def _exit_code(process: subprocess.Popen[bytes]) -> int:
    """As shells say it: 128 and the signal for one that was killed."""
    code = int(process.returncode)
    return code if code >= 0 else 128 - code


def _new_log() -> Path:
    """Beside those of earlier ones, of which a few are kept."""
    folder = jobs_home() / "playground"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for old in sorted(folder.glob("serving-*.log"))[: -_LOGS_KEPT + 1]:
        old.unlink(missing_ok=True)
    return folder / f"serving-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
