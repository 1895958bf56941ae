"""The router: OpenAI's routes. It resolves aliases to versions and adds a receipt to every answer."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlflow_finetune_plugin.credentials.api_keys import Key, Keys
from mlflow_finetune_plugin.serving.engines.fleet import Fleet
from mlflow_finetune_plugin.serving.router.answering.answering import Answering, NoteAnswer
from mlflow_finetune_plugin.serving.router.answering.responders import RETRY_S, unknown_model
from mlflow_finetune_plugin.serving.router.follower import Follower
from mlflow_finetune_plugin.serving.router.key_slot import KeySlot
from mlflow_finetune_plugin.serving.router.large_requests import LARGE_BYTES, LargeRequests
from mlflow_finetune_plugin.serving.router.metrics import Metrics
from mlflow_finetune_plugin.serving.router.own_hosts import OwnHosts
from mlflow_finetune_plugin.serving.router.pictures import ROOM, bytes_of_pictures
from mlflow_finetune_plugin.serving.router.requests import CheckedRequest, RequestError, read_request
from mlflow_finetune_plugin.serving.router.status import Status
from mlflow_finetune_plugin.serving.router.webhooks import is_true_webhook

logger = logging.getLogger(__name__)

_ROUTES = ("GET /v1/models", "POST /v1/chat/completions", "POST /v1/completions")
_BODY_S = 30.0


@dataclass(frozen=True)
class RouterSettings:
    """Settings of a router.

    Attributes:
        max_body: The largest body, in bytes, without the pictures in it.
        webhook_secret: None refuses webhooks.
        hosts: Names under which the router answers; None for any, which is safe only with API keys.
    """

    max_body: int = 1_000_000
    webhook_secret: str | None = None
    hosts: frozenset[str] | None = None


class Router:
    """An ASGI application on top of a follower and its engines.

    Args:
        follower: Finds the version that answers.
        fleet: The engines.
        keys: The API keys; None lets every client in.
        metrics: Counts requests and answers.
        settings: The limits of requests.
        note_answer: Receives each answer that shows how good its version is.
    """

    def __init__(
        self,
        follower: Follower,
        fleet: Fleet,
        keys: Keys | None,
        metrics: Metrics,
        settings: RouterSettings,
        note_answer: NoteAnswer,
    ) -> None:
        self._follower, self._keys = follower, keys
        self._metrics, self._settings = metrics, settings
        self._large = LargeRequests()
        self._answering = Answering(follower, fleet, metrics, self._counts_keys, note_answer)
        self._status = status = Status(follower, fleet, metrics)
        routes = [
            Route("/v1/models", self._guarded(self._models), methods=["GET"]),
            Route("/v1/models/{model:path}", self._guarded(self._one_model), methods=["GET"]),
            Route("/v1/chat/completions", self._guarded(self._answer), methods=["POST"]),
            Route("/v1/completions", self._guarded(self._answer), methods=["POST"]),
            Route("/healthz", status.healthz, methods=["GET"]),
            Route("/readyz", self._readyz, methods=["GET"]),
            Route("/metrics", status.metrics, methods=["GET"]),
            Route("/webhooks/mlflow", self._webhook, methods=["POST"]),
        ]
        own_hosts = Middleware(OwnHosts, settings.hosts, lambda error: self._refusal(error, _new_id()))
        handlers = {404: self._no_route, 405: self._no_route}
        self.app = Starlette(routes=routes, middleware=[own_hosts], exception_handlers=handlers)

    # requests to OpenAI's routes -------------------------------------------------------------------------------------

    def _guarded(
        self, handle: Callable[[Request, str, Key | None], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            request_id = _new_id()
            try:
                key = self._key(request)
            except RequestError as error:
                return self._refusal(error, request_id)
            return KeySlot(self._keys, key, partial(respond, request, request_id, key))

        async def respond(request: Request, request_id: str, key: Key | None) -> Response:
            try:
                return await handle(request, request_id, key)
            except RequestError as error:
                return self._refusal(error, request_id)
            except Exception:
                logger.exception("request_broken id=%s", request_id)
                return self._refusal(RequestError(500, "the router failed", "internal_error"), request_id)

        return guarded

    def _key(self, request: Request) -> Key | None:
        if self._keys is None:
            return None
        key = self._keys.find(_bearer(request))
        if key is None:
            raise RequestError(401, "no valid API key; fix: Authorization: Bearer KEY", "invalid_api_key")
        wait_s = self._keys.wait_s(key)
        if wait_s:
            raise RequestError(
                429, f"too many requests for key {key.name!r}", "rate_limit_exceeded", retry_after_s=wait_s
            )
        if not self._keys.begin(key):
            raise RequestError(
                429,
                f"key {key.name!r} has {key.concurrent_requests} running requests, its limit; fix: wait for one of them",
                "too_many_concurrent_requests",
                retry_after_s=RETRY_S,
            )
        return key

    def _counts_keys(self) -> bool:
        """Return whether the failures of a key can be compared with those of another."""
        return self._keys is not None and self._keys.has_several

    def _refusal(self, error: RequestError, request_id: str) -> Response:
        self._metrics.refused.labels(error.code).inc()
        logger.info("refused id=%s status=%d code=%s", request_id, error.status, error.code)
        headers = {"x-finetune-request-id": request_id}
        if error.retry_after_s is not None:
            headers["retry-after"] = str(max(1, round(error.retry_after_s)))
        if error.status == 401:
            headers["www-authenticate"] = "Bearer"
        if error.status in (408, 413):
            headers["connection"] = "close"
        return JSONResponse(error.to_json(), error.status, headers)

    async def _body(self, request: Request) -> bytes:
        limit = self._settings.max_body + (ROOM if self._status.sees else 0)
        too_large = RequestError(413, f"the body is larger than {limit:,} bytes", "body_too_large")
        announced = request.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > limit:
            raise too_large
        parts, size = [], 0
        try:
            async with asyncio.timeout(_BODY_S):
                async for part in request.stream():
                    size += len(part)
                    if size > limit:
                        raise too_large
                    parts.append(part)
        except ClientDisconnect as error:
            raise RequestError(400, "the body ended early", "client_gone") from error
        except TimeoutError as error:
            raise RequestError(408, f"the body was not complete after {_BODY_S:.0f} s", "body_too_slow") from error
        return b"".join(parts)

    async def _read(self, route: str, raw: bytes, key: Key | None) -> CheckedRequest:
        read = partial(read_request, route, raw)
        if len(raw) <= LARGE_BYTES:
            return read()
        limit = self._settings.max_body
        if len(raw) > limit and len(raw) - bytes_of_pictures(raw) > limit:
            message = f"the body is larger than {limit:,} bytes without its pictures"
            raise RequestError(413, message, "body_too_large")
        return await self._large.run(None if key is None else key.name, read)

    async def _answer(self, request: Request, request_id: str, key: Key | None) -> Response:
        checked = await self._read(request.url.path, await self._body(request), key)
        return await self._answering.answer(request, request_id, key, checked)

    # other routes ----------------------------------------------------------------------------------------------------

    async def _readyz(self, request: Request) -> Response:
        """Report readiness. Faults name folders and addresses, so that with API keys only clients with a key get them."""
        has_key = self._keys is None or self._keys.find(_bearer(request)) is not None
        return self._status.readyz(in_full=has_key)

    async def _models(self, request: Request, request_id: str, key: Key | None) -> Response:
        return JSONResponse(self._status.models(), headers={"x-finetune-request-id": request_id})

    async def _one_model(self, request: Request, request_id: str, key: Key | None) -> Response:
        name = request.path_params["model"]
        model = next((entry for entry in self._status.models()["data"] if entry["id"] == name), None)
        if model is None:
            raise unknown_model(name, "no such model here")
        return JSONResponse(model, headers={"x-finetune-request-id": request_id})

    async def _no_route(self, request: Request, error: Exception) -> Response:
        """Return an unknown route as an error in OpenAI's form."""
        status = getattr(error, "status_code", 404)
        message = f"{request.method} {request.url.path[:200]}: no such route; fix: use one of {', '.join(_ROUTES)}"
        return self._refusal(RequestError(status, message, "unknown_route"), _new_id())

    # webhooks --------------------------------------------------------------------------------------------------------

    async def _webhook(self, request: Request) -> Response:
        secret = self._settings.webhook_secret
        try:
            body = await self._body(request)
        except RequestError as error:
            return self._refusal(error, f"hook-{uuid.uuid4().hex}")
        if secret is None or not is_true_webhook(secret, request.headers, body):
            self._metrics.refused.labels("webhook").inc()
            return Response(status_code=401)
        self._follower.wake()
        return Response(status_code=204)


def _new_id() -> str:
    return f"req-{uuid.uuid4().hex}"


def _bearer(request: Request) -> str | None:
    scheme, _, api_key = request.headers.get("authorization", "").partition(" ")
    return api_key.strip() if scheme.lower() == "bearer" else None
