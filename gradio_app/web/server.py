"""Serve the playground: Gradio behind the guard, on one port, until SIGINT or SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradio_app.settings import PlaygroundSettings
from gradio_app.web.access import Access
from gradio_app.web.guard import VISITOR, Guard, script_hashes
from gradio_app.web.request_rules import Handlers
from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.serving.connections import ConnectionLimits, total_connections
from mlflow_finetune_plugin.serving.http_server import HttpServer, http_config
from mlflow_finetune_plugin.serving.versions.names import http_address

if TYPE_CHECKING:
    from fastapi import Request
    from gradio import Blocks

_DRAIN_S = 2
_MOST_FILE_BYTES = 1_000_000
_THREADS_BESIDE_STREAMS = 8
_MOST_STATES = 1_000
_COLLECTED_AFTER = (10_000, 10, 10)
"""Thresholds of the garbage collector. Python's default of 700 is passed a hundred times while a page opens."""
_QUEUE_LOOKS_S = 0.005
"""The interval of Gradio's queue. Its default of 1 ms takes 6 % of a core all the time."""
QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "GRADIO_SHARE": "False",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_MCP_SERVER": "False",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_ALLOWED_PATHS": "",
    "GRADIO_ROOT_PATH": "",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": "1000000000",
}
"""Environment variables for Gradio, which replace the user's: nothing is sent, shared or served beside the page.

The last one is the number of events between two counts of all past events, for a page of Gradio's that is not served
here.
"""


def check_address(settings: PlaygroundSettings) -> None:
    """Raise ConfigError when the address cannot be listened on."""
    _listening(settings).close()


@contextlib.contextmanager
def private_files() -> Iterator[Path]:
    """Create an empty folder for Gradio's files, and delete it afterwards.

    Enter this before gradio is imported. Gradio serves files that a handler returns from its temporary folder and from
    the working directory, so this folder replaces the first, and ``make_app`` blocks the second.
    """
    folder = Path(tempfile.mkdtemp(prefix="mlflow-finetune-playground-")).resolve()
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    os.environ |= {**QUIET, "GRADIO_TEMP_DIR": str(folder / "cache"), "GRADIO_CACHE_DIR": str(folder / "examples")}
    (folder / "cache").mkdir()
    try:
        yield folder / "cache"
    finally:
        tempfile.tempdir = before
        shutil.rmtree(folder, ignore_errors=True)


async def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Page:
    """A page to serve. ``theme`` holds arguments of ``gradio.mount_gradio_app``; ``close`` is awaited at the end."""

    blocks: Blocks
    theme: Mapping[str, Any] = field(default_factory=dict)
    close: Callable[[], Awaitable[None]] = _nothing


def make_app(page: Page, settings: PlaygroundSettings, access: Access, cache: Path) -> Guard:
    """Return the page behind the guard. ``cache`` comes from ``private_files``."""
    import fastapi
    import gradio

    from gradio_app.web import gradio_internals

    @contextlib.asynccontextmanager
    async def closes(_: fastapi.FastAPI) -> AsyncIterator[None]:
        yield
        await page.close()

    blocks = page.blocks
    blocks.max_threads = (
        settings.max_streams + _THREADS_BESIDE_STREAMS
    )  # The default of 40 would also limit the streams.
    blocks.queue(
        max_size=settings.max_waiting,
        default_concurrency_limit=settings.max_streams,
        api_open=False,  # Otherwise API clients could bypass the queue.
        status_update_rate=10,  # "auto" updates all waiting clients at each event, which grows with their square.
    )
    blocks.state_session_capacity = _MOST_STATES  # The default is 10,000, also of closed pages.
    gradio_internals.set_queue_interval(blocks, _QUEUE_LOOKS_S)
    gradio_internals.mark_launched(blocks)
    app = gradio.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=closes),
        blocks,
        path="/",
        server_name=settings.host,
        server_port=settings.port,
        footer_links=[],
        run_history=False,
        auth_dependency=None if access.is_open else _name_of_visitor,
        allowed_paths=[],
        blocked_paths=[] if cache.is_relative_to(Path.cwd()) else [str(Path.cwd())],
        show_error=False,
        max_file_size=_MOST_FILE_BYTES,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        **page.theme,
    )
    gradio_internals.copy_page_states(app, blocks)
    names = frozenset(name for handler in blocks.fns.values() if isinstance(name := handler.api_name, str))
    handlers = Handlers(frozenset(blocks.fns), names)
    return Guard(app, settings, access, cache, handlers, inline_scripts=script_hashes(page.theme.get("head") or ""))


def run(app: Guard, settings: PlaygroundSettings, tell_listening: Callable[[str], None] = lambda address: None) -> None:
    """Serve until SIGINT or SIGTERM; open answers get two seconds. Raises ConfigError when it cannot listen there."""
    sock = _listening(settings)
    address = http_address(settings.host, int(sock.getsockname()[1]))
    limits = ConnectionLimits(settings.max_connections, total_connections())
    config = http_config(app, limits, drain_s=_DRAIN_S, lifespan="on")

    def listening() -> None:
        _spare_the_collector()
        tell_listening(address)

    try:
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(_serve(HttpServer(config, listening), sock))
    finally:
        sock.close()


async def _serve(server: HttpServer, sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.end)
    await server.serve(sockets=[sock])


def _spare_the_collector() -> None:
    """Exempt present objects from garbage collection, because a full collection of them would pause every answer."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECTED_AFTER)


def _name_of_visitor(request: Request) -> str | None:
    """Return the value of ``gr.Request.username`` in every handler."""
    visitor = request.scope.get(VISITOR)
    return visitor.name if visitor is not None else None


def _listening(settings: PlaygroundSettings) -> socket.socket:
    host = settings.host.strip("[]")
    where = f"cannot listen on port {settings.port} of {settings.host}"
    try:
        family = socket.getaddrinfo(host, settings.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, settings.port), family=family, backlog=1024)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError([f"{where}: the port is in use; fix: --port with another number"]) from error
        fix = "--port with another number, or --host with an address of this machine"
        raise ConfigError([f"{where}: {error.strerror or error}; fix: {fix}"]) from error
