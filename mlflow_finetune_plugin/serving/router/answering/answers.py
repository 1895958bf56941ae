"""Pass answers from an engine to a client, measure them, and end them cleanly whatever happens to either side."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Protocol

import httpx
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mlflow_finetune_plugin.errors import EngineError, ServingError
from mlflow_finetune_plugin.serving.engines.engine import EngineProcess
from mlflow_finetune_plugin.serving.router.answering.answer_texts import AnswerTexts
from mlflow_finetune_plugin.serving.router.metrics import RequestTimer

logger = logging.getLogger(__name__)

_RESTART_S = 120.0
_USAGE = b'"choices":[]'
_DONE = b"data: [DONE]"
_END = b"\n\n"
_ERROR = b'data: {"error"'


class AnswerEnd(Protocol):
    """Receives the end of an answer, once.

    Args:
        failed: Why the answer failed; None if it did not.
        is_refusal: Whether the engine refused the request.
    """

    def __call__(self, failed: str | None, *, is_refusal: bool = False) -> None: ...


class EngineLostError(ServingError):
    """The engine ended the answer early; the message is for the log."""


async def whole_answer(
    engine: EngineProcess,
    route: str,
    body: Mapping[str, Any],
    timer: RequestTimer,
    client_gone: Awaitable[None] | None,
    texts: AnswerTexts | None = None,
) -> tuple[int, bytes]:
    """Return the status and body of an answer that is not streamed, with its texts by the rule of ``texts``.

    The engine's generation is cancelled when ``client_gone`` completes.

    Raises:
        ClientGoneError: The client closed its connection.
        EngineLostError: The engine ended the answer early.
    """
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
    if response.status_code != 200:
        return response.status_code, response.content
    answer = response.json()
    timer.usage(answer.get("usage"))
    if texts is None:
        return response.status_code, response.content
    return response.status_code, json.dumps(texts.whole(answer), ensure_ascii=False).encode()


async def engine_back(engine: EngineProcess, generation: int) -> None:
    """Wait until an engine that lost an answer can answer again, for at most two minutes.

    Args:
        engine: The engine.
        generation: Its generation when the answer was begun.

    Raises:
        EngineError: It is not back in time, or ends.
    """
    if engine.generation == generation and await engine.is_healthy():
        return  # only the connection was lost
    deadline = time.monotonic() + _RESTART_S
    while engine.generation == generation or engine.state != "ready":
        if engine.state == "stopped" or time.monotonic() > deadline:
            raise EngineError(f"the engine was lost and is {engine.state}; fix: send the request again")
        await asyncio.sleep(0.1)


class ClientGoneError(ServingError):
    """The client closed its connection before the answer."""


class ForwardedStream(Response):
    """Server-sent events, passed on unchanged except for the texts of chats, and a usage event that the client did not request.

    If the engine ends the answer early, the client gets an error event and no ``[DONE]``. If the client closes its connection,
    the connection to the engine is closed, which ends the generation.
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
        texts: AnswerTexts | None = None,
    ) -> None:
        self._upstream, self._stack, self._timer, self._on_end = upstream, stack, timer, on_end
        self._texts = texts
        self._wants_usage = wants_usage
        self.background = None
        self.status_code = 200
        self.init_headers({**headers, "cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        failed: str | None = "client_gone"  # until the answer ends
        listener = asyncio.ensure_future(_disconnected(receive))
        writer = asyncio.ensure_future(self._write(send))
        try:
            await asyncio.wait({listener, writer}, return_when=asyncio.FIRST_COMPLETED)
            if writer.done():
                failed = writer.result()
        except OSError:
            logger.debug("client_gone while writing")  # uvicorn raises OSError for a closed connection
        finally:
            for task in (listener, writer):
                task.cancel()
            await asyncio.gather(listener, writer, return_exceptions=True)
            await self._stack.aclose()
            self._on_end(failed)

    async def _write(self, send: Send) -> str | None:
        """Send the answer. Returns why it failed, or None."""
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
                    "message": "the engine ended this answer early; fix: send the request again",
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
            # Only whole events are passed on, because a slow client's events arrive in pieces.
            chunk, end, unfinished = (unfinished + read).rpartition(_END)
            chunk += end
            if not chunk:
                continue
            if self._texts is not None:
                chunk = self._by_the_rule(chunk, self._texts)
            if _USAGE in chunk:
                chunk = self._without_usage(chunk)
            elif chunk:
                self._timer.event()
            if chunk:
                yield chunk
        if unfinished:
            yield unfinished

    @staticmethod
    def _by_the_rule(chunk: bytes, texts: AnswerTexts) -> bytes:
        events = (texts.event(event) for event in chunk.removesuffix(_END).split(_END))
        return b"".join(event + _END for event in events if event is not None)

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
    """Return when the client has closed its connection."""
    while not await request.is_disconnected():
        await asyncio.sleep(0.2)
