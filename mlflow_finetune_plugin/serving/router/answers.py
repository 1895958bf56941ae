"""From an engine to a client: bytes as they come, watched, ended cleanly whatever happens to either side."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Protocol

import httpx
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mlflow_finetune_plugin.errors import ServingError
from mlflow_finetune_plugin.serving.engines.engine import EngineProcess
from mlflow_finetune_plugin.serving.router.metrics import RequestTimer

logger = logging.getLogger(__name__)

_USAGE = b'"choices":[]'
_DONE = b"data: [DONE]"
_END = b"\n\n"
_ERROR = b'data: {"error"'


class AnswerEnd(Protocol):
    """Called once, when an answer is over. ``failed``: why, or None; ``is_refusal``: the engine took no such request."""

    def __call__(self, failed: str | None, *, is_refusal: bool = False) -> None: ...


class EngineLostError(ServingError):
    """The engine broke off; ``fault`` is for the log."""


async def whole_answer(
    engine: EngineProcess, route: str, body: Mapping[str, Any], timer: RequestTimer, client_gone: Awaitable[None] | None
) -> tuple[int, bytes]:
    """(status, body) of an answer that is not streamed. Cancelled at the engine when the client is ``gone``."""
    sending = asyncio.ensure_future(engine.client.post(route, json=body))
    waiting = {sending} | ({asyncio.ensure_future(client_gone)} if client_gone is not None else set())
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not sending.done():
            raise ClientGoneError
        response = sending.result()
    except httpx.HTTPError as error:
        raise EngineLostError(f"{type(error).__name__}: {error}") from error
    finally:
        for task in waiting:
            task.cancel()
    if response.status_code == 200:
        timer.usage(response.json().get("usage"))
    return response.status_code, response.content


class ClientGoneError(ServingError):
    """Nobody is there to take the answer."""


class StreamedAnswer(Response):
    """Server-sent events passed on as they are, but for the usage event that the client did not ask for.

    When the engine is lost the client gets an error event and no ``[DONE]``; when the client is gone the connection to the
    engine is closed, which ends the generation.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        upstream: httpx.Response,
        stack: AsyncExitStack,
        timer: RequestTimer,
        on_end: AnswerEnd,
        *,
        wants_usage: bool,
        headers: Mapping[str, str],
    ) -> None:
        self._upstream, self._stack, self._timer, self._on_end = upstream, stack, timer, on_end
        self._wants_usage = wants_usage
        self.background = None
        self.status_code = 200
        self.init_headers({**headers, "cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        failed: str | None = "client_gone"  # until it is known better
        listener = asyncio.ensure_future(_disconnected(receive))
        writer = asyncio.ensure_future(self._write(send))
        try:
            await asyncio.wait({listener, writer}, return_when=asyncio.FIRST_COMPLETED)
            if writer.done():
                failed = writer.result()
        except OSError:
            logger.debug("client_gone while writing")  # uvicorn raises it for a connection that is closed
        finally:
            for task in (listener, writer):
                task.cancel()
            await asyncio.gather(listener, writer, return_exceptions=True)
            await self._stack.aclose()
            self._on_end(failed)

    async def _write(self, send: Send) -> str | None:
        """Returns why it failed, if it did."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        failed, is_done, is_broken = None, False, False
        try:
            async for chunk in self._chunks():
                is_done, is_broken = is_done or _DONE in chunk, is_broken or _ERROR in chunk
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except httpx.HTTPError as error:
            failed = f"{type(error).__name__}"
        if failed is None and not is_done:
            failed = "cut_off"
        if failed is not None:
            event = {
                "error": {
                    "message": "the engine broke off this answer; ask again",
                    "type": "server_error",
                    "code": "engine_lost",
                }
            }
            await send(
                {
                    "type": "http.response.body",
                    "body": b"data: " + json.dumps(event).encode() + b"\n\n",
                    "more_body": True,
                }
            )
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        if failed is not None:
            return "engine_lost"
        return "engine_error" if is_broken else None

    async def _chunks(self) -> AsyncIterator[bytes]:
        unfinished = b""
        async for read in self._upstream.aiter_raw():
            chunk, end, unfinished = (unfinished + read).rpartition(
                _END
            )  # whole events: a slow client's come in pieces
            chunk += end
            if not chunk:
                continue
            if _USAGE in chunk:
                chunk = self._without_usage(chunk)
            else:
                self._timer.event()
            if chunk:
                yield chunk
        if unfinished:
            yield unfinished

    def _without_usage(self, chunk: bytes) -> bytes:
        events = chunk.split(b"\n\n")
        other_events = []
        for event in events:
            if _USAGE in event:
                self._timer.usage(json.loads(event.removeprefix(b"data:")).get("usage"))
                if not self._wants_usage:
                    continue
            other_events.append(event)
        return b"\n\n".join(other_events) if any(other_events) else b""


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


async def until_gone(request: Request) -> None:
    """Returns when the client has closed its connection."""
    while not await request.is_disconnected():
        await asyncio.sleep(0.2)
