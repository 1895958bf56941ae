"""uvicorn with limits for its clients and without its own signal handling, for the router and for the playground."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any, Literal

import uvicorn

from mlflow_finetune_plugin.serving.connections import ConnectionLimits, limited_protocol

_HEADER_BYTES = 64 * 1024
_KEEP_ALIVE_S = 75


def http_config(
    app: Any, limits: ConnectionLimits, *, drain_s: int, lifespan: Literal["on", "off"], **more: Any
) -> uvicorn.Config:
    """Return the settings of a server: limits for clients that have no key yet, and no logs of uvicorn's own.

    Args:
        app: The ASGI application.
        limits: Limits of connections.
        drain_s: Seconds that running answers get at the end.
        lifespan: Whether the application gets ASGI's lifespan events.
        more: Other arguments of ``uvicorn.Config``.
    """
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the applications themselves read the headers of proxies that they trust
        http=limited_protocol(limits),
        h11_max_incomplete_event_size=_HEADER_BYTES,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=drain_s,
        ws="none",
        lifespan=lifespan,
        **more,
    )


class HttpServer(uvicorn.Server):
    """A uvicorn server. ``listening`` is called when it accepts connections.

    The program handles the signals itself. uvicorn would raise them again when it has ended, before the program could end
    its other parts, and a regular end would look like a crash.
    """

    def __init__(self, config: uvicorn.Config, listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._listening()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def end(self) -> None:
        """End the server. The first call lets running answers end, the second does not wait for them."""
        self.force_exit = self.should_exit
        self.should_exit = True
