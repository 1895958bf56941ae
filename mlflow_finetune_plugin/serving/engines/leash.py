"""``python -m mlflow_finetune_plugin.serving.engines.leash COMMAND ...`` runs COMMAND so that none of its processes outlives its parent.

stdin is the read end of a pipe whose other end only the parent holds, and this process leads its own process group. Before it
becomes COMMAND it forks a watcher into another session. When the pipe closes, because the parent closed it or was killed, the
watcher ends the whole group. COMMAND stays the parent's child, with its process id and exit code.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

_GRACE_S = 2.0


def main(command: list[str]) -> None:
    """Replace this process by ``command``. It does not return."""
    group = os.getpid()
    if os.fork() == 0:
        if os.fork() == 0:
            _watch(group)
        os._exit(0)
    os.wait()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if sys.platform.startswith("linux"):  # should the watcher have been killed too
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    os.execv(command[0], command)


def _watch(group: int) -> None:
    """Wait until the pipe closes. Then send the group SIGTERM, and after a moment SIGKILL."""
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a signal to all processes also ends the parent, and that is enough
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    while os.read(0, 1):
        pass
    try:
        os.killpg(group, signal.SIGTERM)
        until = time.monotonic() + _GRACE_S
        while time.monotonic() < until:
            time.sleep(0.05)
            os.killpg(group, 0)
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # no process is left; macOS raises PermissionError for zombies
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
