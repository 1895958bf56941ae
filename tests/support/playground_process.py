"""``python -m gradio_app`` as its users have it, with a small page of the tests' own: a process, spoken to over HTTP."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from conftest import free_port
from forked import SMALL_PAGE, start_python

REAL_PAGE = ("-m", "gradio_app")
NOBODY = "http://127.0.0.1:9/v1"


@dataclass
class PlaygroundProcess:
    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, **more) -> httpx.Response:
        return httpx.request(method, self.url + path, timeout=30, trust_env=False, **more)

    def end(self, sent: int = signal.SIGTERM, seconds: float = 10) -> int:
        if self.process.poll() is None:
            self.process.send_signal(sent)
        return self.process.wait(seconds)


@contextmanager
def playground(
    folder: Path,
    *arguments: str,
    endpoint: str = NOBODY,
    program: Sequence[str] = (str(SMALL_PAGE),),
    **environment: str,
) -> Iterator[PlaygroundProcess]:
    """Listens when it begins, ended when it is over. ``program`` ``REAL_PAGE``: the page that users have."""
    port = free_port()
    log = folder / f"playground-{port}.log"
    command = [*program, "--endpoint", endpoint, "--port", str(port), *arguments]
    with log.open("wb") as out:
        process = start_python(command, stdout=out, stderr=out, cwd=folder, env={**os.environ, **environment})
    found = PlaygroundProcess(process, port, log)
    try:
        deadline = time.monotonic() + 120
        while "  playground  http" not in log.read_text():
            assert process.poll() is None, f"it ended with {process.returncode}: {log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.05)
        yield found
    finally:
        process.kill()
        process.wait()
