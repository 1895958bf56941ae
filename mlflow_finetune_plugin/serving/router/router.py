"""The router: OpenAI's routes. It resolves aliases to versions and adds a receipt to every answer."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlflow_finetune_plugin.credentials.api_keys import Key, Keys
from mlflow_finetune_plugin.errors import ServingError
from mlflow_finetune_plugin.serving.engines.engine import EngineProcess
from mlflow_finetune_plugin.serving.engines.fleet import Fleet, Resident
from mlflow_finetune_plugin.serving.router.answers import (
    AnswerEnd,
    ClientGoneError,
    EngineLostError,
    ForwardedStream,
    engine_back,
    until_gone,
    whole_answer,
)
from mlflow_finetune_plugin.serving.router.first_answers import Draw
from mlflow_finetune_plugin.serving.router.follower import Follower, NotReadyError, UnknownModelError
from mlflow_finetune_plugin.serving.router.key_slot import KeySlot
from mlflow_finetune_plugin.serving.router.large_requests import LARGE_BYTES, LargeRequests
from mlflow_finetune_plugin.serving.router.metrics import Metrics, RequestTimer
from mlflow_finetune_plugin.serving.router.own_hosts import OwnHosts
from mlflow_finetune_plugin.serving.router.requests import CheckedRequest, RequestError, read_request
from mlflow_finetune_plugin.serving.router.status import Status
from mlflow_finetune_plugin.serving.router.version_faults import VersionFaults
from mlflow_finetune_plugin.serving.router.webhooks import is_true_webhook
from mlflow_finetune_plugin.serving.versions.names import header_value, parse
from mlflow_finetune_plugin.store.model_ref import ModelRef
from mlflow_finetune_plugin.store.names import BASE

logger = logging.getLogger(__name__)

_SHADOWS = 4
_ROUTES = ("GET /v1/models", "POST /v1/chat/completions", "POST /v1/completions")
_RETRY_S = 5
_BODY_S = 30.0
_NO_FAULT = ("client_gone", "cancelled")
"""Ends of an answer that neither its version nor its engine caused."""


@dataclass(frozen=True)
class RouterSettings:
    """Settings of a router.

    Attributes:
        max_body: The largest body, in bytes.
        webhook_secret: None refuses webhooks.
        hosts: Names under which the router answers; None for any, which is safe only with API keys.
    """

    max_body: int = 1_000_000
    webhook_secret: str | None = None
    hosts: frozenset[str] | None = None


@dataclass(frozen=True)
class _Responder:
    """The version, or the base, that answers a request."""

    engine: EngineProcess
    name: str
    model: str
    version: str
    adapter_digest: str
    stop_token_ids: list[int]
    resident: Resident | None
    alias: str | None = None
    draw: Draw | None = None


class Router:
    """An ASGI application on top of a follower and its engines.

    Args:
        follower: Finds the version that answers.
        fleet: The engines.
        keys: The API keys; None lets every client in.
        metrics: Counts requests and answers.
        settings: The limits of requests.
        note_answer: Receives model, version, milliseconds, draw and API key of each answer; no milliseconds for one that failed by
            a fault of the version, and no key where only one key is valid.
    """

    def __init__(
        self,
        follower: Follower,
        fleet: Fleet,
        keys: Keys | None,
        metrics: Metrics,
        settings: RouterSettings,
        note_answer: Callable[[str, str, float | None, Draw | None, str | None], None],
    ) -> None:
        self._note_answer = note_answer
        self._follower, self._fleet, self._keys = follower, fleet, keys
        self._metrics, self._settings = metrics, settings
        self._large = LargeRequests()
        self._shadows: set[asyncio.Task[None]] = set()
        self._faults = VersionFaults(lambda model, version, draw, key: note_answer(model, version, None, draw, key))
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
                retry_after_s=_RETRY_S,
            )
        return key

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
        limit = self._settings.max_body
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
        return await self._large.run(None if key is None else key.name, read)

    # answers ---------------------------------------------------------------------------------------------------------

    async def _answer(self, request: Request, request_id: str, key: Key | None) -> Response:
        checked = await self._read(request.url.path, await self._body(request), key)
        responder = await self._find(checked)
        self._send_shadows(checked, responder)
        stack = AsyncExitStack()
        timer = RequestTimer(self._metrics, responder.model, responder.version, checked.route)
        on_end = partial(self._log_answer, request_id, key, responder, checked, timer)
        attempt = partial(self._attempt, request, request_id, responder, checked, timer, on_end, stack)
        generation = responder.engine.generation
        try:
            try:
                return await attempt()
            except (EngineLostError, httpx.HTTPError) as error:  # nothing of the answer was sent
                await stack.aclose()
                logger.warning("answer_retried id=%s fault=%s", request_id, error)
                await engine_back(responder.engine, generation)
                return await attempt()
        except (EngineLostError, httpx.HTTPError) as error:
            await stack.aclose()
            on_end("engine_lost")
            logger.error("engine_lost id=%s fault=%s", request_id, error)
            raise RequestError(
                502,
                "the engine ended this answer early; fix: send the request again",
                "engine_lost",
                retry_after_s=_RETRY_S,
            ) from error
        except ClientGoneError:
            await stack.aclose()
            on_end("client_gone")
            return Response(status_code=499)
        except ServingError as error:
            await stack.aclose()
            on_end("not_ready")
            raise RequestError(503, str(error), "not_ready", retry_after_s=_RETRY_S) from error
        except BaseException:
            await stack.aclose()
            on_end("cancelled")
            raise

    async def _attempt(
        self,
        request: Request,
        request_id: str,
        responder: _Responder,
        checked: CheckedRequest,
        timer: RequestTimer,
        on_end: AnswerEnd,
        stack: AsyncExitStack,
    ) -> Response:
        """Send a request to its engine once. Raises EngineLostError and httpx.HTTPError if the engine is lost before it answers."""
        if responder.resident is not None:
            await stack.enter_async_context(self._fleet.using(responder.resident))
        elif responder.engine.state != "ready":
            raise ServingError(f"the engine is {responder.engine.state}")
        headers = self._receipt(responder, request_id)
        body = checked.for_engine(responder.name, responder.stop_token_ids)
        if checked.is_stream:
            return await self._streamed(checked, responder, body, timer, on_end, stack, headers)
        status, content = await whole_answer(responder.engine, checked.route, body, timer, until_gone(request))
        await stack.aclose()
        _end_whole(on_end, status)
        return Response(content, status, {**headers, "content-type": "application/json"})

    async def _streamed(
        self,
        checked: CheckedRequest,
        responder: _Responder,
        body: dict[str, Any],
        timer: RequestTimer,
        on_end: AnswerEnd,
        stack: AsyncExitStack,
        headers: dict[str, str],
    ) -> Response:
        upstream = await responder.engine.client.send(
            responder.engine.client.build_request("POST", checked.route, json=body), stream=True
        )
        stack.push_async_callback(upstream.aclose)
        if upstream.status_code != 200:
            content = await upstream.aread()
            await stack.aclose()
            _end_whole(on_end, upstream.status_code)
            return Response(content, upstream.status_code, {**headers, "content-type": "application/json"})
        return ForwardedStream(upstream, stack, timer, on_end, wants_usage=checked.wants_usage, headers=headers)

    async def _find(self, checked: CheckedRequest) -> _Responder:
        ref = parse(checked.model, self._follower.served_models())
        base = self._base(checked.model) if ref is None else None  # a registered model's name has precedence
        if base is not None:
            return _Responder(base, base.spec.base_name, base.spec.base_name, BASE, "", [], None)
        if ref is None:
            raise _unknown(checked.model, "no such model here")
        try:
            resident, alias = await self._follower.find(ref, checked.user)
        except UnknownModelError as error:
            raise _unknown(checked.model, str(error)) from error
        except NotReadyError as error:
            raise RequestError(503, str(error), "not_ready", "model", _RETRY_S) from error
        return _responder(resident, alias, self._draw(ref, checked.user))

    def _draw(self, ref: ModelRef, user: str | None) -> Draw | None:
        """Return how the alias of a request was chosen; None where the request names an alias or a version."""
        model = self._follower.snapshot.get(ref.name)
        if ref.alias is not None or ref.version is not None or model is None:
            return None
        return Draw(user, bool(model.traffic.split))

    def _base(self, model_id: str) -> EngineProcess | None:
        """Return the engine of a base by its own name, or by ``base`` if all engines have the same base."""
        engines = list(self._fleet.engines.values())
        if model_id == BASE and self._fleet.has_one_base:
            return _first_ready(engines)
        return _first_ready([engine for engine in engines if engine.spec.base_name == model_id])

    def _receipt(self, responder: _Responder, request_id: str) -> dict[str, str]:
        """Return the headers that prove which version answered."""
        return {
            "x-finetune-model": header_value(responder.model),
            "x-finetune-version": header_value(responder.version),
            "x-finetune-adapter-digest": responder.adapter_digest,
            "x-finetune-base-digest": responder.engine.spec.key.base_digest,
            "x-finetune-request-id": request_id,
        }

    def _log_answer(
        self,
        request_id: str,
        key: Key | None,
        responder: _Responder,
        checked: CheckedRequest,
        timer: RequestTimer,
        failed: str | None,
        *,
        is_refusal: bool = False,
    ) -> None:
        """Log the end of an answer, without any text of prompt or answer."""
        took_ms = timer.finish(failed)
        if responder.resident is not None and not is_refusal and failed not in _NO_FAULT:
            client = key.name if key is not None and self._keys is not None and self._keys.has_several else None
            answered = (responder.model, responder.version)
            if failed == "engine_error":
                self._faults.report(request_id, checked, responder.engine, *answered, responder.draw, client)
            elif failed == "engine_lost":
                self._faults.report_lost(responder.engine, *answered, responder.draw, client)
            else:
                took = took_ms if failed is None else None
                self._note_answer(*answered, took, responder.draw, client)
        entry = {
            "id": request_id,
            "key": key.name if key is not None else None,
            "route": checked.route,
            "model": responder.model,
            "version": responder.version,
            "alias": responder.alias,
            "stream": checked.is_stream,
            "failed": failed,
            "first_ms": None if timer.first_ms is None else round(timer.first_ms, 1),
            "took_ms": round(took_ms, 1),
            "prompt_tokens": timer.prompt_tokens,
            "completion_tokens": timer.completion_tokens,
        }
        logger.info("answered %s", json.dumps(entry))

    # shadow traffic --------------------------------------------------------------------------------------------------

    def _send_shadows(self, checked: CheckedRequest, responder: _Responder) -> None:
        """Send the request to the model's shadow versions too. It does not wait for them, and drops what is too much."""
        model = self._follower.snapshot.get(responder.model)
        if model is None or responder.resident is None:
            return
        for alias in model.traffic.shadows(model.aliases):
            target = self._follower.targets.get((responder.model, alias))
            if target is None or target.resident is None or target.resident is responder.resident:
                continue
            if len(self._shadows) >= _SHADOWS:
                self._metrics.refused.labels("shadow_dropped").inc()
                continue
            task = asyncio.create_task(self._shadow(checked, _responder(target.resident, alias)))
            self._shadows.add(task)
            task.add_done_callback(self._shadows.discard)

    async def _shadow(self, checked: CheckedRequest, responder: _Responder) -> None:
        timer = RequestTimer(self._metrics, responder.model, responder.version, checked.route, shadow=True)
        failed: str | None = "engine_lost"
        body = checked.for_engine(responder.name, responder.stop_token_ids)
        for key in ("stream", "stream_options"):
            body.pop(key, None)
        try:
            assert responder.resident is not None
            async with self._fleet.using(responder.resident):
                status, _ = await whole_answer(responder.engine, checked.route, body, timer, None)
            failed = None if status < 500 else "engine_error"
        except ServingError as error:
            logger.warning("shadow_failed version=%s fault=%s", responder.name, error)
        finally:
            timer.finish(failed)

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
            raise _unknown(name, "no such model here")
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


def _responder(resident: Resident, alias: str | None, draw: Draw | None = None) -> _Responder:
    version = resident.version
    return _Responder(
        engine=resident.engine,
        name=resident.name,
        model=version.model,
        version=version.number,
        adapter_digest=version.adapter.digest,
        stop_token_ids=list(version.card["stop_token_ids"]),
        resident=resident,
        alias=alias,
        draw=draw,
    )


def _end_whole(on_end: AnswerEnd, status: int) -> None:
    """Report the end of a whole answer by the engine's status."""
    on_end("engine_error" if status >= 500 else None, is_refusal=400 <= status < 500)


def _new_id() -> str:
    return f"req-{uuid.uuid4().hex}"


def _bearer(request: Request) -> str | None:
    scheme, _, api_key = request.headers.get("authorization", "").partition(" ")
    return api_key.strip() if scheme.lower() == "bearer" else None


def _first_ready(engines: list[EngineProcess]) -> EngineProcess | None:
    return next((engine for engine in engines if engine.state == "ready"), engines[0] if engines else None)


def _unknown(model_id: str, why: str) -> RequestError:
    return RequestError(404, f"{model_id[:200]!r}: {why}; fix: use one of GET /v1/models", "model_not_found", "model")
