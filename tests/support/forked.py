"""``python -m MODULE`` as a fork of the zygote: a ``subprocess.Popen`` that skips seconds of imports."""

from __future__ import annotations

import array
import inspect
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ZYGOTE = Path(__file__).with_name("zygote.py")
IMPORTS = {"mlflow": "commands", "mlflow_finetune_plugin.cli": "commands", "gradio_app": "page"}
"""What the zygote of each module imports."""
_READ_AT_START = ("PYTHONPATH", "PYTHONHASHSEED", "OMP_NUM_THREADS", "LD_PRELOAD", "PATH")
"""Variables that Python, or an import of the zygote, reads once."""

_zygotes: dict[tuple[int, str], tuple[subprocess.Popen[bytes], str]] = {}


def start_module(
    module: str, arguments: Sequence[str], *, env: Mapping[str, str], **options: Any
) -> subprocess.Popen[Any]:
    """Start ``python -m module arguments``. ``options`` are those of ``subprocess.Popen``."""
    command = [sys.executable, "-m", module, *arguments]
    can_fork = module in IMPORTS and all(env.get(name) == os.environ.get(name) for name in _READ_AT_START)
    return (ForkedProcess if can_fork else subprocess.Popen)(command, env=dict(env), **options)


def run_module(
    module: str, arguments: Sequence[str], *, env: Mapping[str, str], timeout: float, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """Run ``python -m module arguments`` to its end, as ``subprocess.run`` does."""
    with start_module(module, arguments, env=env, **options) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


class ForkedProcess(subprocess.Popen):  # type: ignore[type-arg]
    """A command as a fork of the zygote. Its parent is the zygote, which sends its return code."""

    _connection: socket.socket | None = None

    def _execute_child(self, *arguments: Any) -> None:
        values_by_name = inspect.signature(subprocess.Popen._execute_child).bind(self, *arguments).arguments  # type: ignore[attr-defined]
        command = [os.fspath(word) for word in values_by_name["args"]]
        assert command[:2] == [sys.executable, "-m"], command
        request = {
            "module": command[2],
            "arguments": command[3:],
            "environment": {str(key): str(value) for key, value in values_by_name["env"].items()},
            "folder": os.fspath(values_by_name["cwd"] or os.getcwd()),
            "new_session": bool(values_by_name["start_new_session"]),
        }
        ends = [values_by_name[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        streams = [end if end != -1 else number for number, end in enumerate(ends)]
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(_zygote(IMPORTS[command[2]]))
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", streams))]
        self._connection.sendmsg([json.dumps(request).encode() + b"\n"], ancillary)
        self.pid = self._number("started")
        self._child_created = True
        self._close_pipe_fds(
            *(values_by_name[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite"))
        )

    def _number(self, event: str) -> int:
        assert self._connection is not None
        line = b""
        while not line.endswith(b"\n"):
            byte = self._connection.recv(1)
            if not byte:
                raise RuntimeError("the zygote of the tests has ended")
            line += byte
        name, number = line.decode().split()
        if name != event:
            raise RuntimeError(f"expected {event!r} from the zygote of the tests, got {line!r}: see its stderr")
        return int(number)

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        return self._wait(0) if self.returncode is None else self.returncode

    def _wait(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            readable, _, _ = select.select([self._connection], [], [], timeout)
            if readable:
                self.returncode = self._number("ended")
                self._connection.close()  # type: ignore[union-attr]
            elif timeout:
                raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode


def _zygote(imports: str) -> str:
    """Return the socket of this process's zygote, started when it is first needed. It ends with this process."""
    pid = os.getpid()
    if (pid, imports) not in _zygotes:
        path = f"\0finetune-tests-{pid}-{imports}"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(64)
            process = subprocess.Popen(
                [sys.executable, str(ZYGOTE), str(listener.fileno()), imports],
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": ""},
            )
        _zygotes[pid, imports] = process, path
    return _zygotes[pid, imports][1]
