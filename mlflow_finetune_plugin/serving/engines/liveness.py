"""Find out that an engine hangs: its process runs, but it answers nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import httpx


@dataclass(frozen=True)
class LivenessLimits:
    """How long an engine may be silent.

    Attributes:
        every_s: Seconds between two probes.
        idle_s: Seconds within which an engine must answer a health check, and generate a token while it has no requests.
        busy_s: Seconds within which an engine that has requests must send a part of any answer. Answers that are not
            streamed send nothing until their end, and a probe waits behind them, so that this is much longer.
        generates: Whether a probe also generates a token. It then shares steps with the requests, which rounds their numbers in
            another way, so that equal requests may get different answers.
    """

    every_s: float = 15.0
    idle_s: float = 60.0
    busy_s: float = 600.0
    generates: bool = True


class WatchedTransport(httpx.AsyncBaseTransport):
    """Counts an engine's requests, and notes when it last sent something.

    Attributes:
        running: Requests whose answers have not ended.
        sent_at: When the engine last sent a part of an answer, by ``time.monotonic``.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport
        self.running = 0
        self.sent_at = time.monotonic()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.running += 1
        try:
            response = await self._transport.handle_async_request(request)
        except BaseException:
            self.running -= 1
            raise
        self.sent_at = time.monotonic()
        assert isinstance(response.stream, httpx.AsyncByteStream)
        stream = _WatchedStream(response.stream, self)
        return httpx.Response(
            response.status_code, headers=response.headers, stream=stream, extensions=response.extensions
        )

    async def aclose(self) -> None:
        await self._transport.aclose()


class _WatchedStream(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream, transport: WatchedTransport) -> None:
        self._stream, self._transport = stream, transport
        self._is_open = True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            self._transport.sent_at = time.monotonic()
            yield part

    async def aclose(self) -> None:
        if self._is_open:
            self._is_open = False
            self._transport.running -= 1
        await self._stream.aclose()


async def until_silent(
    transport: WatchedTransport,
    limits: LivenessLimits,
    health: Callable[[], Awaitable[object]],
    token: Callable[[], Awaitable[object]],
) -> str:
    """Probe an engine until it is silent for too long, and return why it counts as hanging.

    Args:
        transport: Of the engine's client, without the probes' own requests.
        limits: How long it may be silent.
        health: Asks for the engine's health; any answer is one.
        token: Generates a token with the base; any answer is one.
    """
    while True:
        await asyncio.sleep(limits.every_s)
        if not await _answers(health, lambda began: time.monotonic() - began > limits.idle_s):
            return f"it did not answer a health check for {limits.idle_s:.0f} s"
        if not limits.generates:
            continue

        def is_late(began: float) -> bool:
            silent_s = time.monotonic() - max(began, transport.sent_at)
            return silent_s > (limits.busy_s if transport.running else limits.idle_s)

        if not await _answers(token, is_late):
            return f"it generated no token for {limits.busy_s if transport.running else limits.idle_s:.0f} s"


async def _answers(probe: Callable[[], Awaitable[object]], is_late: Callable[[float], bool]) -> bool:
    """Return whether a probe ends before it is late. An error is an answer: a process that ended is noticed elsewhere."""
    began = time.monotonic()
    task = asyncio.ensure_future(probe())
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=1.0)
            if not task.done() and is_late(began):
                return False
        return True
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
