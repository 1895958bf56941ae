"""``python -m mlflow_finetune_plugin.serving.engines.leash COMMAND ...``: becomes COMMAND, and nothing of it outlives who started it.

stdin is the read end of a pipe whose other end the router alone holds, and this process leads a group of its own. Before it
becomes the engine it leaves a watcher behind, in another session and nobody's child: when the pipe ends, because the router has
let go or was killed, the watcher ends the whole group. The engine stays the router's child, with its process id and exit code.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

_GRACE_S = 2.0


def main(command: list[str]) -> None:
    """Does not return: the process goes on as ``command``."""
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
    """Until the pipe ends; then the group is asked, and after a moment made, to end."""
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # whoever ends everything at once ends the router, and that is enough
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
        pass  # all of them are gone; macOS refuses where only zombies are left
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
