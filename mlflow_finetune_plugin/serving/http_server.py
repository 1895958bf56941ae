"""uvicorn with ends of our own: for the router, and for the playground's page."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn


class HttpServer(uvicorn.Server):
    """``listening`` is called once connections are taken.

    Signals are the program's: uvicorn raises them again when it has ended, before what else runs could be ended, and a
    good end would look like a death.
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
        """First: let answers end. Again: do not wait for them."""
        self.force_exit = self.should_exit
        self.should_exit = True
