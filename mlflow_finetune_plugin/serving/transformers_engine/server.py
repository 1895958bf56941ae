"""The HTTP routes of the Transformers engine. They are vLLM's, so that a router can use either engine."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mlflow_finetune_plugin.errors import StoreError
from mlflow_finetune_plugin.serving.transformers_engine.answers import GeneratedAnswer, Json, error_body
from mlflow_finetune_plugin.serving.transformers_engine.engine import (
    EngineFaultError,
    Exchange,
    Refusal,
    TransformersEngine,
)
from mlflow_finetune_plugin.serving.transformers_engine.protocol import (
    UNSUPPORTED,
    ChatRequest,
    CompletionRequest,
    LoadAdapter,
    UnloadAdapter,
)

Body = TypeVar("Body", bound=BaseModel)

_CLIENT_GONE = 499  # no client reads it


def build_app(engine: TransformersEngine, key: str) -> ASGIApp:
    """Return the application. It starts and stops the engine's decode thread."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.close)

    routes = _Routes(engine)
    app = Starlette(
        lifespan=lifespan,
        routes=[
            Route("/health", routes.health),
            Route("/load", routes.load),
            Route("/v1/models", routes.models),
            Route("/v1/load_lora_adapter", routes.load_adapter, methods=["POST"]),
            Route("/v1/unload_lora_adapter", routes.unload_adapter, methods=["POST"]),
            Route("/v1/chat/completions", routes.chat, methods=["POST"]),
            Route("/v1/completions", routes.completion, methods=["POST"]),
        ],
        exception_handlers={Refusal: _refuse, HTTPException: _refuse_route, Exception: _fail},
    )
    return _KeyCheck(app, key)


class _KeyCheck:
    """Refuses requests to /v1 without the key."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._expected = app, f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1"):
            header = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(header, self._expected):
                body = error_body("the key is missing or wrong", kind="AuthenticationError", code="invalid_api_key")
                await JSONResponse(body, status_code=401)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class _Routes:
    def __init__(self, engine: TransformersEngine) -> None:
        self._engine = engine

    async def health(self, request: Request) -> Response:
        if self._engine.broken is not None:
            raise Refusal(503, self._engine.broken, "ServiceUnavailableError")
        return Response(status_code=200)

    async def load(self, request: Request) -> Response:
        return JSONResponse({"server_load": self._engine.load})

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": self._engine.models()})

    async def load_adapter(self, request: Request) -> Response:
        body = await _parsed(request, LoadAdapter)
        try:
            await self._engine.load_adapter(body.lora_name, body.lora_path)
        except FileNotFoundError as error:
            raise Refusal(404, str(error), "NotFoundError", param="lora_path") from error
        except StoreError as error:
            raise Refusal(400, str(error), param="lora_path") from error
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    async def unload_adapter(self, request: Request) -> Response:
        body = await _parsed(request, UnloadAdapter)
        await self._engine.unload_adapter(body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, await _parsed(request, ChatRequest))

    async def completion(self, request: Request) -> Response:
        return await self._answer(request, await _parsed(request, CompletionRequest))

    async def _answer(self, request: Request, body: ChatRequest | CompletionRequest) -> Response:
        exchange, prompts = await self._engine.open(body)
        answer = GeneratedAnswer(body, prompts, self._engine.token_text)
        if body.stream:
            return _EventStream(_events(answer, exchange), on_end=exchange.close)
        try:
            return await _whole(request, answer, exchange)
        finally:
            exchange.close()


class _EventStream(StreamingResponse):
    """Server-sent events. ``on_end`` is called at the end, also when the client closes its connection."""

    def __init__(self, events: AsyncIterator[str], *, on_end: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


async def _events(answer: GeneratedAnswer, exchange: Exchange) -> AsyncIterator[str]:
    try:
        for chunk in answer.first_chunks():
            yield _event(chunk)
        async for index, update in exchange.updates():
            choice = answer.choices[index]
            choice.updates.append(update)
            chunk_body = answer.chunk(choice, update)
            if chunk_body is not None:
                yield _event(chunk_body)
        usage = answer.last_chunk()
        if usage is not None:
            yield _event(usage)
    except EngineFaultError as error:
        yield _event(error_body(str(error), kind="InternalServerError", code=500))
    yield "data: [DONE]\n\n"


def _event(body: Json) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def _whole(request: Request, answer: GeneratedAnswer, exchange: Exchange) -> Response:
    collecting = asyncio.ensure_future(_collect(answer, exchange))
    leaving = asyncio.ensure_future(_client_leaves(request))
    try:
        await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not collecting.done():
            return Response(status_code=_CLIENT_GONE)
        collecting.result()
        return JSONResponse(answer.whole())
    except EngineFaultError as error:
        return JSONResponse(error_body(str(error), kind="InternalServerError", code=500), status_code=500)
    finally:
        collecting.cancel()
        leaving.cancel()


async def _collect(answer: GeneratedAnswer, exchange: Exchange) -> None:
    async for index, update in exchange.updates():
        answer.choices[index].updates.append(update)


async def _client_leaves(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _parsed(request: Request, kind: type[Body]) -> Body:
    try:
        return kind.model_validate_json(await request.body())
    except ValidationError as error:
        faults = {".".join(map(str, fault["loc"][:1])): _reason(fault) for fault in reversed(error.errors())}
        message = "; ".join(f"{field}: {reason}" if field else reason for field, reason in reversed(faults.items()))
        raise Refusal(400, message, param=next(reversed(faults)) or None) from error


def _reason(fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        reason = "not supported by the Transformers engine" if fault["loc"][-1] in UNSUPPORTED else "no such field here"
        return f"{reason}; fix: leave it out, or serve with vLLM"
    return str(fault["msg"]).removeprefix("Value error, ")


async def _refuse(request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    code = refusal.status if refusal.code is None else refusal.code
    body = error_body(refusal.message, kind=refusal.kind, code=code, param=refusal.param)
    return JSONResponse(body, status_code=refusal.status)


async def _refuse_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = "NotFoundError" if error.status_code == 404 else "BadRequestError"
    body = error_body(f"{request.method} {request.url.path}: {error.detail}", kind=kind, code=error.status_code)
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


async def _fail(request: Request, error: Exception) -> Response:
    body = error_body(f"{type(error).__name__}: {error}", kind="InternalServerError", code=500)
    return JSONResponse(body, status_code=500)
