"""uvicorn without its own signal handling, for the router and for the playground."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn


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
