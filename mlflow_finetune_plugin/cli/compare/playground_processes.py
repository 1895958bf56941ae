"""The processes of ``mlflow-finetune playground``: the page, and the service behind it where the command starts one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.serving.local_services import addresses
from mlflow_finetune_plugin.serving.process import LEASH

if TYPE_CHECKING:
    from mlflow_finetune_plugin.serving.process import RunningService

_POLL_S = 0.2
_PAGE_ENDS_S = 10.0


@contextlib.contextmanager
def interruptions() -> Iterator[Callable[[], bool]]:
    """Note Ctrl-C, SIGTERM and SIGHUP instead of raising, so that the command can end its children first.

    Yields a function that returns True after one of these signals.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    received: list[int] = []
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in numbers}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_page(arguments: Sequence[str]) -> int:
    """Let the page check its arguments before anything is spent; it prints its own message. Returns its exit code."""
    return subprocess.run([*_page_command(arguments), "--check"], stdin=subprocess.DEVNULL, check=False).returncode


def run_page(
    arguments: Sequence[str], is_interrupted: Callable[[], bool], service: RunningService | None = None
) -> int:
    """Run the page until it ends or a signal arrives, and return its exit code.

    Raises EngineError when the service behind the page ends first.
    """
    page = subprocess.Popen(
        [*LEASH, *_page_command(arguments)],  # the leash ends the page when this process is killed
        stdin=subprocess.PIPE,
        env={**os.environ, **addresses()},
        process_group=0,  # a Ctrl-C reaches this process alone, which then ends the page
    )
    try:
        while page.poll() is None:
            if service is not None:
                service.check_alive()
            if is_interrupted():
                return 0
            time.sleep(_POLL_S)
        code = int(page.returncode)
        return code if code >= 0 else 128 - code  # as shells report a signal
    finally:
        _end(page)


def _page_command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "gradio_app", *arguments]


def _end(page: subprocess.Popen[bytes]) -> None:
    if page.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            page.send_signal(signal.SIGTERM)
        try:
            page.wait(_PAGE_ENDS_S)
        except subprocess.TimeoutExpired:
            page.kill()
            page.wait()
    if page.stdin is not None:  # last, because the broken leash ends the page at once
        page.stdin.close()
