"""``python -m mlflow_finetune_plugin.rewards.process.guard FD SECONDS`` forks the scoring process and ends everything that it started.

stdin is a pipe of the trainer. When it closes, when the trainer sends SIGTERM or dies, or when the scoring process ends, the
guard kills all descendants, also those that left its process group. It keeps the end of what they
printed and writes it to stdout last. Its exit code is that of the scoring process, or 128 plus the signal that ended it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import sys
import time

_KEPT_BYTES = 2000
_POLL_S = 0.5
_ENDS_S = 5.0
_is_ended: list[bool] = []  # by SIGTERM
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main(descriptor: int) -> None:
    """Fork the scoring process, wait for its end or the trainer's, and exit. It does not return."""
    parent = os.getppid()
    output, printed = os.pipe()
    wake, wake_end = os.pipe()
    for end in (wake, wake_end, output):
        os.set_blocking(end, False)
    if sys.platform.startswith("linux"):  # orphans become children of this process, where it finds them
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    child = os.fork()
    if child == 0:
        os.close(output)
        _score(descriptor, printed)
    os.close(descriptor)
    os.close(printed)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: _is_ended.append(True))
    signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a signal to all processes also ends the trainer, and that is enough
    status, tail = _wait(child, output, wake, parent)
    _kill_descendants()
    tail += _read(output)
    with contextlib.suppress(OSError):
        os.write(1, tail[-_KEPT_BYTES:])
    os._exit(0 if status is None else _exit_code(status))


def _score(descriptor: int, printed: int) -> None:
    """Become the scoring process."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # should the guard be killed
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    os.close(printed)
    from mlflow_finetune_plugin.rewards.process.child import serve

    serve(socket.socket(fileno=descriptor))
    os._exit(0)


def _wait(child: int, output: int, wake: int, parent: int) -> tuple[int | None, bytes]:
    """Return the status of the scoring process, None if the trainer ended first, and the end of what was printed."""
    tail = b""
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status, tail
        ready, _, _ = select.select([0, output, wake], [], [], _POLL_S)
        if output in ready:
            tail = (tail + _read(output))[-_KEPT_BYTES:]
        if wake in ready:
            _read(wake)
        if 0 in ready or _is_ended or os.getppid() != parent:  # nothing is ever written to the pipe
            return None, tail


def _read(descriptor: int) -> bytes:
    """Return at most 1 MiB of what a pipe holds now."""
    data = b""
    with contextlib.suppress(BlockingIOError):
        while len(data) < 1 << 20:
            part = os.read(descriptor, 1 << 16)
            if not part:
                break
            data += part
    return data


def _kill_descendants() -> None:
    """Kill all descendants, again and again, because they may start others in the meantime."""
    import psutil

    own = psutil.Process()
    until = time.monotonic() + _ENDS_S
    while time.monotonic() < until:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        descendants = own.children(recursive=True)
        if not descendants:
            return
        for process in descendants:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(0.01)


def _exit_code(status: int) -> int:
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


if __name__ == "__main__":
    main(int(sys.argv[1]))
