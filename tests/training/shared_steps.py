"""Two processes that train together: forks of this one, which has paid for the imports already."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from mlflow_finetune_plugin.training.processes import Processes, joined


def together(count: int, folder: Path, work: Callable[[Processes], None], timeout_s: float = 120) -> list[int]:
    """Runs ``work`` in ``count`` joined processes; their exit codes as ``os.waitstatus_to_exitcode`` gives them."""
    pids = [_fork(rank, count, folder / "meeting", work) for rank in range(count)]
    codes: dict[int, int] = {}
    deadline = time.monotonic() + timeout_s
    while len(codes) < count:
        for pid in set(pids) - set(codes):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                codes[pid] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            for pid in set(pids) - set(codes):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            raise AssertionError(f"processes still run after {timeout_s} s; ended: {codes}")
        time.sleep(0.02)
    return [codes[pid] for pid in pids]


def _fork(rank: int, count: int, meeting: Path, work: Callable[[Processes], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        with joined(rank, count, meeting) as processes:
            work(processes)
        code = 0
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)
