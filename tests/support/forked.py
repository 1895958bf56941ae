"""``python -m MODULE`` or ``python FILE`` as a fork of the zygote: a ``subprocess.Popen`` that skips seconds of imports."""

from __future__ import annotations

import array
import inspect
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ZYGOTE = Path(__file__).with_name("zygote.py")
SMALL_PAGE = Path(__file__).with_name("small_page.py")
IMPORTS = {
    "mlflow": "commands",
    "mlflow_finetune_plugin.cli": "commands",
    "mlflow_finetune_plugin.jobs.supervisor": "commands",
    "mlflow_finetune_plugin.worker": "training",
    "mlflow_finetune_plugin.serving.transformers_engine": "engine",
    "gradio_app": "page",
    str(SMALL_PAGE): "page",
}
"""What the zygote of each module, or file, imports."""
LEASH = "mlflow_finetune_plugin.serving.engines.leash"
"""The module that replaces itself by the command in its arguments, so it forks from the zygote of that command."""
FORKS = "FINETUNE_TEST_FORKS"
"""The environment variable that holds ``no`` where each process must be a Python of its own."""
_READ_AT_START = [
    "PYTHONPATH",
    "PYTHONHASHSEED",
    "OMP_NUM_THREADS",
    "LD_PRELOAD",
    "PATH",
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
]
"""Variables that Python, or an import of the zygote, reads once."""

_zygotes: dict[str, subprocess.Popen[bytes]] = {}
_OPTIONS = inspect.signature(subprocess.Popen._execute_child)  # type: ignore[attr-defined]
_real_waitpid = os.waitpid
_forks_by_pid: dict[int, ForkedProcess] = {}
_tests = SimpleNamespace(pid=os.getpid(), environment={})
"""The process of the tests, also in forks: its id, after which the sockets of the zygotes are named, and its environment."""


def start_module(
    module: str, arguments: Sequence[str], *, env: Mapping[str, str], **options: Any
) -> subprocess.Popen[Any]:
    """Start ``python -m module arguments``. ``options`` are those of ``subprocess.Popen``."""
    return start_python(["-m", module, *arguments], env=env, **options)


def start_python(arguments: Sequence[str], *, env: Mapping[str, str], **options: Any) -> subprocess.Popen[Any]:
    """Start ``python arguments``. ``options`` are those of ``subprocess.Popen``."""
    return ForkedProcess([sys.executable, *arguments], env=dict(env), **options)


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


def fork_what_tests_start() -> None:
    """Let this process, which runs tests, start supervisors, services, engines and pages as forks, whatever code starts them."""
    _tests.pid = os.getpid()
    _replace_popen()


def fork_what_forks_start(tests_pid: int) -> None:
    """Let the forks of this process, which is a zygote, start supervisors, workers and engines as forks, too."""
    _tests.pid = tests_pid
    _replace_popen()


def _replace_popen() -> None:
    _tests.environment.update({name: os.environ.get(name) for name in _READ_AT_START})
    subprocess.Popen = ForkedProcess  # type: ignore[misc]
    os.waitpid = _waitpid


def program_of(command: Sequence[str]) -> tuple[str, list[str]] | None:
    """Return the module or the file that ``python -m MODULE ...`` or ``python FILE ...`` runs, and its arguments."""
    if len(command) < 2 or command[0] != sys.executable:
        return None
    words = list(command[2:] if command[1] == "-m" else command[1:])
    return (words[0], words[1:]) if words else None


def _imports(command: Sequence[str], environment: Mapping[str, str]) -> str | None:
    """Return the zygote whose fork does the same as ``command``; None if there is none."""
    if environment.get(FORKS) == "no":
        return None
    if any(environment.get(name) != value for name, value in _tests.environment.items()):
        return None
    program = program_of(command)
    if program is not None and program[0] == LEASH:
        program = program_of(program[1])
    if program is None or program[0] not in IMPORTS:
        return None
    name, arguments = program
    if name.endswith(".worker") and _names_bitsandbytes(Path(arguments[0]) / "config.json"):
        return None
    if name.endswith("_engine") and _names_bitsandbytes(Path(arguments[0])):
        return None
    return IMPORTS[name]


def _names_bitsandbytes(config: Path) -> bool:
    """Return whether a configuration may need bitsandbytes, which no zygote has imported.

    The configuration of an evaluation does not show its version's base. If that is quantised, PEFT refuses its layers in
    a fork; fix: set ``FINETUNE_TEST_FORKS=no`` in the environment of the command.
    """
    return any(word in config.read_text(encoding="utf-8") for word in ("nf4", "int8", "4bit", "8bit", "32bit"))


def _waitpid(pid: int, options: int) -> tuple[int, int]:
    """Do what ``os.waitpid`` does, also for a fork, whose parent is the zygote. asyncio waits so for its processes."""
    process = _forks_by_pid.get(pid)
    if process is None:
        return _real_waitpid(pid, options)
    code = process._wait(0 if options & os.WNOHANG else None)
    if code is None:
        return 0, 0
    return pid, -code if code < 0 else code << 8


class ForkedProcess(subprocess.Popen):  # type: ignore[type-arg]
    """A command as a fork of the zygote where that does the same, else as a process of its own.

    The parent of a fork is the zygote, which sends its return code.
    """

    _connection: socket.socket | None = None

    @property
    def is_fork(self) -> bool:
        return self._connection is not None

    def _execute_child(self, *arguments: Any) -> None:
        values_by_name = _OPTIONS.bind(self, *arguments).arguments
        options = SimpleNamespace(**values_by_name)
        command = [] if isinstance(options.args, (str, os.PathLike)) else [os.fspath(word) for word in options.args]
        environment = {
            str(key): str(value) for key, value in (os.environ if options.env is None else options.env).items()
        }
        imports = None if options.shell or options.pass_fds or options.preexec_fn else _imports(command, environment)
        if imports is None:
            super()._execute_child(*arguments)  # type: ignore[misc]
            _forks_by_pid.pop(self.pid, None)  # of an ended fork for which nothing waited
            return
        if _tests.pid == os.getpid():
            _start_zygotes()
        program = program_of(command)
        assert program is not None
        request = {
            "program": program[0],
            "arguments": program[1],
            "environment": environment,
            "folder": os.fspath(options.cwd or os.getcwd()),
            "new_session": bool(options.start_new_session),
            "process_group": options.process_group,
        }
        streams = [
            end if end != -1 else number
            for number, end in enumerate((options.p2cread, options.c2pwrite, options.errwrite))
        ]
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(_address(imports))
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", streams))]
        self._connection.sendmsg([json.dumps(request).encode() + b"\n"], ancillary)
        self._reading = threading.Lock()
        self.pid = self._number("started")
        _forks_by_pid[self.pid] = self
        self._child_created = True
        pipes = ["p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite"]
        self._close_pipe_fds(*(values_by_name[name] for name in pipes))

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

    def __del__(self, *arguments: Any, _is_ending: Callable[[], bool] = sys.is_finalizing, **options: Any) -> None:
        if not _is_ending():  # the names that waiting needs are gone then
            super().__del__(*arguments, **options)  # type: ignore[misc]

    def _internal_poll(self, *arguments: Any, **options: Any) -> int | None:
        if self._connection is None:
            return super()._internal_poll(*arguments, **options)  # type: ignore[misc,no-any-return]
        return self._wait(0)

    def _wait(self, timeout: float | None) -> int | None:
        if self._connection is None:
            return super()._wait(timeout=timeout)  # type: ignore[misc,no-any-return]
        if self.returncode is None:
            ending = select.poll()  # not select(), which refuses descriptors from 1024 on
            ending.register(self._connection, select.POLLIN)
            if not ending.poll(None if timeout is None else timeout * 1000):
                if timeout:
                    raise subprocess.TimeoutExpired(self.args, timeout)
                return None
            with self._reading:  # asyncio waits in a thread
                if self.returncode is None:
                    self.returncode = self._number("ended")
                    _forks_by_pid.pop(self.pid, None)  # the number may become another process's
                    self._connection.close()
        return self.returncode


def _address(imports: str) -> str:
    return f"\0finetune-tests-{_tests.pid}-{imports}"


def _start_zygotes() -> None:
    """Start the zygotes of this process, each of which imports when it is first needed. They end with this process.

    They have the environment from before the tests, because a test may have changed a variable that Python reads once.
    """
    if _zygotes:
        return
    environment = {name: value for name, value in os.environ.items() if name not in _READ_AT_START}
    environment |= {name: value for name, value in _tests.environment.items() if value is not None}
    for imports in sorted(set(IMPORTS.values())):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(_address(imports))
            listener.listen(64)
            _zygotes[imports] = subprocess.Popen(
                [sys.executable, str(ZYGOTE), str(listener.fileno()), imports, str(_tests.pid)],
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
                start_new_session=True,
                cwd=ZYGOTE.parent,  # not that of a test, by which its processes are found
                env={**environment, "PYTHONUNBUFFERED": ""},
            )
