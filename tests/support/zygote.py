"""A process that has imported MLflow and this package's commands, or the page, and forks a copy of itself for each command.

``python -m mlflow run`` imports for three to five seconds of CPU time before it does anything. A fork of this process runs
the same module as ``__main__``, with the arguments, environment, directory and streams of the request. Its command line and
``/proc/PID/environ`` are those of this process, so a test that reads them starts a Python of its own.

Each connection to the socket is one request: JSON with the descriptors of stdin, stdout and stderr. The answers are
``started PID``, from the fork when it has its directory and session, and ``ended CODE``, from the zygote, with the return code
as ``subprocess`` gives it.
"""

from __future__ import annotations

import array
import gc
import json
import os
import runpy
import select
import selectors
import signal
import socket
import sys
from typing import Any, NoReturn

import forked

_LONGEST_REQUEST = 1_000_000


def main() -> None:
    listener, imports, tests_pid = socket.socket(fileno=int(sys.argv[1])), sys.argv[2], int(sys.argv[3])
    readable, _, _ = select.select([listener, sys.stdin], [], [])
    if listener not in readable:  # the tests are over, and needed nothing of it
        return
    {"commands": _import_commands, "engine": _import_engine, "page": _import_page, "training": _import_training}[
        imports
    ]()
    forked.fork_what_forks_start(tests_pid)
    gc.freeze()  # so that collections in a fork do not copy the pages of what is imported
    request = _serve(listener)
    if request is not None:  # in a fork
        if request["program"] == forked.LEASH:
            os.execv = _run_instead_of_exec  # type: ignore[assignment]
        _run(request["program"], request["arguments"])


def _run(program: str, arguments: list[str]) -> None:
    sys.argv = [program, *arguments]
    if program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


def _run_instead_of_exec(_: str, command: list[str]) -> NoReturn:
    """Run the module of ``python -m MODULE ...`` in this process, which has imported it."""
    program = forked.program_of(command)
    assert program is not None, command
    _run(*program)
    sys.exit(0)


def _import_commands() -> None:
    import fastapi  # noqa: F401
    import mlflow.cli  # noqa: F401  # 0.6 s of CPU time in each `mlflow run` and `mlflow server`
    import uvicorn  # noqa: F401

    import mlflow_finetune_plugin.api
    import mlflow_finetune_plugin.backend
    import mlflow_finetune_plugin.cli.main
    import mlflow_finetune_plugin.jobs.supervisor
    import mlflow_finetune_plugin.serving.deployments
    import mlflow_finetune_plugin.serving.service
    import mlflow_finetune_plugin.submission  # noqa: F401

    _import_stores()


def _import_stores() -> None:
    """Import what MLflow imports when a process opens its first SQLite store, for 0.8 s, and do what it does once."""
    import mlflow.store.db.utils as stores
    import mlflow.store.model_registry.sqlalchemy_store
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    from sqlalchemy.orm import configure_mappers

    configure_mappers()
    revision = stores._get_latest_schema_revision()  # reads 67 migrations
    stores._get_latest_schema_revision = lambda: revision


def _import_training() -> None:
    """Import what a worker imports for a training whose base is not quantised."""
    from mlflow_finetune_plugin.startup import ask_for_huge_pages, without

    ask_for_huge_pages()
    with without("bitsandbytes", "scipy", "sklearn"):
        import mlflow_finetune_plugin.pipeline
        import mlflow_finetune_plugin.stages.followers
        import mlflow_finetune_plugin.worker
    with without("bitsandbytes", "sklearn"):  # what a worker imports later, while it logs, proves and registers
        import evaluate  # noqa: F401
        import git  # noqa: F401
        import mlflow.pyfunc  # noqa: F401
        import scipy.stats  # noqa: F401
        import transformers.models.llama.modeling_llama  # noqa: F401

        import mlflow_finetune_plugin.adaptations.lora
        import mlflow_finetune_plugin.evaluation.plots
        import mlflow_finetune_plugin.evaluation.proof
        import mlflow_finetune_plugin.objectives.sft
        import mlflow_finetune_plugin.promotion.canary_trial
        import mlflow_finetune_plugin.promotion.moves.settlement  # noqa: F401
    from mlflow.utils.requirements_utils import _init_modules_to_packages_map

    _init_modules_to_packages_map()  # lists all installed packages, for a second, when a model is logged
    _import_stores()


def _import_engine() -> None:
    """Import what the Transformers engine imports for a base that is not quantised."""
    from mlflow_finetune_plugin.startup import without

    with without("bitsandbytes", "scipy", "sklearn"):
        import mlflow_finetune_plugin.serving.transformers_engine.engine
        import mlflow_finetune_plugin.serving.transformers_engine.loading
        import mlflow_finetune_plugin.serving.transformers_engine.server  # noqa: F401


def _import_page() -> None:
    import gradio_app.app
    import gradio_app.pages.runs
    import gradio_app.pages.standings  # noqa: F401

    _import_stores()


def _serve(listener: socket.socket) -> dict[str, Any] | None:
    """Fork for each request until stdin ends. Returns the request in a fork, and None in this process."""
    ended_read, ended_write = os.pipe()
    for end in (ended_read, ended_write):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    before = signal.set_wakeup_fd(ended_write)
    children: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        for readable in (listener, ended_read, sys.stdin.fileno()):
            selector.register(readable, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    received = _receive(connection)
                    if received is None:
                        connection.close()
                        continue
                    request, streams = received
                    pid = os.fork()
                    if pid == 0:
                        signal.set_wakeup_fd(before)
                        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                        for inherited in (*children.values(), listener):
                            inherited.close()
                        os.close(ended_read)
                        os.close(ended_write)
                        _become(request, streams)
                        with connection:
                            connection.sendall(f"started {os.getpid()}\n".encode())
                        return request
                    for stream in streams:
                        os.close(stream)
                    children[pid] = connection
                elif key.fileobj == ended_read:
                    os.read(ended_read, 1000)
                    _report_ended(children)
                elif not os.read(sys.stdin.fileno(), 1000):  # the tests are over
                    for pid in children:
                        os.kill(pid, signal.SIGKILL)
                    return None


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Return a request and its streams; None where who asked ended before the request was whole."""
    content, ancillary, _, _ = connection.recvmsg(_LONGEST_REQUEST, socket.CMSG_SPACE(3 * 4))
    streams = array.array("i")
    for _, _, data in ancillary:
        streams.frombytes(data)
    while not content.endswith(b"\n"):
        part = connection.recv(_LONGEST_REQUEST)
        if not part:
            for stream in streams:
                os.close(stream)
            return None
        content += part
    return json.loads(content), list(streams)


def _become(request: dict[str, Any], streams: list[int]) -> None:
    """Give this fork what a Python of its own would have."""
    if request["new_session"]:
        os.setsid()
    if request["process_group"] >= 0:
        os.setpgid(0, request["process_group"])
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for stream in streams:
        if stream > 2:
            os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path[0] = request["folder"]
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=unbuffered, line_buffering=stream is sys.stderr or stream.isatty())  # type: ignore[union-attr]


def _report_ended(children: dict[int, socket.socket]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        if pid not in children:
            continue
        with children.pop(pid) as connection:
            try:
                connection.sendall(f"ended {os.waitstatus_to_exitcode(status)}\n".encode())
            except OSError:  # who asked is gone
                continue


if __name__ == "__main__":
    main()
