"""``python -m gradio_app`` behind its guard, as a process to be measured; and how a figure is told."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil

_START_S = 120


@dataclass(frozen=True)
class Measured:
    """``is_met`` None: there is no goal."""

    what: str
    value: str
    goal: str = ""
    is_met: bool | None = None

    def row(self) -> str:
        verdict = {None: "", True: "met", False: "MISSED"}[self.is_met]
        return f"| {self.what} | {self.value} | {self.goal} | {verdict} |"


def table(results: Sequence[Measured]) -> str:
    return "\n".join(["| what | measured | goal | |", "|---|---|---|---|", *(result.row() for result in results)])


def machine() -> str:
    """Where and when, with what."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("gradio", "mlflow", "aiohttp", "uvicorn"))
    load = os.getloadavg()[0]
    return (
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores (load {load:.1f} at the beginning), "
        f"Python {platform.python_version()}, {packages}"
    )


@dataclass(frozen=True)
class PageProcess:
    process: psutil.Popen
    url: str
    log: Path

    @property
    def cpu_s(self) -> float:
        """Of this process alone, so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def page_process(folder: Path, *arguments: str, port: int | None = None) -> Iterator[PageProcess]:
    """Listens when it begins, ended when it is over. The environment says where MLflow is."""
    port = port or free_port()
    log = folder / f"playground-{port}.log"
    with log.open("wb") as out:
        process = psutil.Popen(
            [sys.executable, "-m", "gradio_app", "--port", str(port), *arguments],
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )
    try:
        deadline = time.monotonic() + _START_S
        while "  playground  http" not in log.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the playground did not start: {log.read_text()[-3000:]}")
            time.sleep(0.05)
        yield PageProcess(process, f"http://127.0.0.1:{port}", log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait()
