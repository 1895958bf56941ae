"""From a checked request to its answer: the engine, a second attempt where it was lost, and the entry of the log."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import Response

from mlflow_finetune_plugin.credentials.api_keys import Key
from mlflow_finetune_plugin.errors import ServingError
from mlflow_finetune_plugin.images import PictureFault
from mlflow_finetune_plugin.serving.engines.fleet import Fleet
from mlflow_finetune_plugin.serving.router.answering.answers import (
    AnswerEnd,
    ClientGoneError,
    EngineLostError,
    ForwardedStream,
    engine_back,
    until_gone,
    whole_answer,
)
from mlflow_finetune_plugin.serving.router.answering.responders import RETRY_S, Responder, Responders
from mlflow_finetune_plugin.serving.router.answering.shadow_traffic import ShadowTraffic
from mlflow_finetune_plugin.serving.router.answering.version_faults import FaultComparison, VersionFaults
from mlflow_finetune_plugin.serving.router.first_answers import Draw
from mlflow_finetune_plugin.serving.router.follower import Follower
from mlflow_finetune_plugin.serving.router.metrics import Metrics, RequestTimer
from mlflow_finetune_plugin.serving.router.pictures import PictureReader, TooManyPicturesError
from mlflow_finetune_plugin.serving.router.requests import CheckedRequest, RequestError

logger = logging.getLogger(__name__)

NoteAnswer = Callable[[str, str, float | None, Draw | None, str | None], None]
"""Receives model, version, milliseconds, draw and API key of each answer; no milliseconds for one that failed by a fault of the
version, and no key where only one key is valid."""

_NO_FAULT = ("client_gone", "cancelled")
"""Ends of an answer that neither its version nor its engine caused."""


@dataclass(frozen=True)
class _Exchange:
    """A request, who answers it, and what is released when the answer ends."""

    request: Request
    request_id: str
    key: Key | None
    checked: CheckedRequest
    responder: Responder
    timer: RequestTimer
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)


class Answering:
    """Answers requests with the versions that a follower finds.

    Args:
        follower: Finds the version of an alias.
        fleet: The engines.
        metrics: Counts answers.
        counts_keys: Returns whether failures are counted for each API key.
        note_answer: Receives each answer that shows how good its version is.
    """

    def __init__(
        self,
        follower: Follower,
        fleet: Fleet,
        metrics: Metrics,
        counts_keys: Callable[[], bool],
        note_answer: NoteAnswer,
    ) -> None:
        self._follower, self._fleet, self._metrics = follower, fleet, metrics
        self._counts_keys, self._note_answer = counts_keys, note_answer
        self._responders = Responders(follower, fleet)
        self._pictures = PictureReader()
        self._shadows = ShadowTraffic(follower, fleet, metrics)
        self._faults = VersionFaults(lambda model, version, draw, key: note_answer(model, version, None, draw, key))

    async def answer(self, request: Request, request_id: str, key: Key | None, checked: CheckedRequest) -> Response:
        """Return the answer, whole or as a stream. Raises RequestError."""
        responder = await self._responders.find(checked)
        checked = await self._with_pictures(checked)
        self._shadows.send(checked, responder)
        timer = RequestTimer(self._metrics, responder.model, responder.version, checked.route)
        exchange = _Exchange(request, request_id, key, checked, responder, timer)
        on_end: AnswerEnd = partial(self._log_answer, exchange)
        try:
            return await self._attempts(exchange, on_end)
        except (EngineLostError, httpx.HTTPError) as error:
            await exchange.stack.aclose()
            on_end("engine_lost")
            logger.error("engine_lost id=%s fault=%s", request_id, error)
            message = "the engine ended this answer early; fix: send the request again"
            raise RequestError(502, message, "engine_lost", retry_after_s=RETRY_S) from error
        except ClientGoneError:
            await exchange.stack.aclose()
            on_end("client_gone")
            return Response(status_code=499)
        except ServingError as error:
            await exchange.stack.aclose()
            on_end("not_ready")
            raise RequestError(503, str(error), "not_ready", retry_after_s=RETRY_S) from error
        except BaseException:
            await exchange.stack.aclose()
            on_end("cancelled")
            raise

    async def _with_pictures(self, checked: CheckedRequest) -> CheckedRequest:
        """Return the request with its pictures. Raises RequestError for one that cannot be used, without any of it."""
        if not checked.client_urls:
            return checked
        try:
            return checked.with_pictures(await self._pictures.read(checked.client_urls))
        except PictureFault as fault:
            raise RequestError(400, f"messages: {fault}", "invalid_picture", "messages") from None
        except TooManyPicturesError as error:
            message = "too many requests with pictures at once; fix: wait for the others"
            raise RequestError(429, message, "too_many_large_requests", retry_after_s=RETRY_S) from error

    async def _attempts(self, exchange: _Exchange, on_end: AnswerEnd) -> Response:
        """Send a request to its engine, and once more if the engine was lost before anything of the answer was sent."""
        generation = exchange.responder.engine.generation
        try:
            return await self._attempt(exchange, on_end)
        except (EngineLostError, httpx.HTTPError) as error:
            await exchange.stack.aclose()
            logger.warning("answer_retried id=%s fault=%s", exchange.request_id, error)
            await engine_back(exchange.responder.engine, generation)
            return await self._attempt(exchange, on_end)

    async def _attempt(self, exchange: _Exchange, on_end: AnswerEnd) -> Response:
        """Send a request once. Raises EngineLostError and httpx.HTTPError if the engine is lost before it answers."""
        responder, checked, stack = exchange.responder, exchange.checked, exchange.stack
        if responder.resident is not None:
            await stack.enter_async_context(self._fleet.using(responder.resident))
        elif responder.engine.state != "ready":
            raise ServingError(f"the engine is {responder.engine.state}")
        headers = responder.receipt(exchange.request_id)
        body = checked.for_engine(responder.name, responder.stop_token_ids)
        if checked.is_stream:
            return await _streamed(exchange, body, on_end, headers)
        gone, texts = until_gone(exchange.request), responder.answer_texts(checked.route)
        status, content = await whole_answer(responder.engine, checked.route, body, exchange.timer, gone, texts)
        await stack.aclose()
        _end_whole(on_end, status)
        return Response(content, status, {**headers, "content-type": "application/json"})

    def _log_answer(self, exchange: _Exchange, failed: str | None, *, is_refusal: bool = False) -> None:
        """Log the end of an answer, without any text of prompt or answer; of a picture the start of its hash."""
        responder, timer = exchange.responder, exchange.timer
        took_ms = timer.finish(failed)
        if responder.resident is not None and not is_refusal and failed not in _NO_FAULT:
            self._note(exchange, failed, took_ms)
        entry: dict[str, Any] = {
            "id": exchange.request_id,
            "key": exchange.key.name if exchange.key is not None else None,
            "route": exchange.checked.route,
            "model": responder.model,
            "version": responder.version,
            "alias": responder.alias,
            "stream": exchange.checked.is_stream,
            "failed": failed,
            "first_ms": None if timer.first_ms is None else round(timer.first_ms, 1),
            "took_ms": round(took_ms, 1),
            "prompt_tokens": timer.prompt_tokens,
            "completion_tokens": timer.completion_tokens,
        }
        if exchange.checked.pictures:
            entry["pictures"] = [picture.sha256[:12] for picture in exchange.checked.pictures]
        logger.info("answered %s", json.dumps(entry))

    def _note(self, exchange: _Exchange, failed: str | None, took_ms: float) -> None:
        """Count an answer for its version, or look for the cause of its failure."""
        responder, key = exchange.responder, exchange.key
        client = key.name if key is not None and self._counts_keys() else None
        answered = (responder.model, responder.version)
        if failed == "engine_error":
            others = self._comparisons(responder, sees=bool(exchange.checked.pictures))
            self._faults.report(exchange.request_id, exchange.checked, others, *answered, responder.draw, client)
        elif failed == "engine_lost":
            self._faults.report_lost(responder.engine, *answered, responder.draw, client)
        else:
            self._note_answer(*answered, took_ms if failed is None else None, responder.draw, client)

    def _comparisons(self, responder: Responder, *, sees: bool) -> list[FaultComparison]:
        """Return the base, and the version before if it is loaded. With ``sees`` only what takes pictures."""
        engine = responder.engine
        comparisons = [FaultComparison("the base", engine, engine.spec.base_name)]
        before = self._follower.version_before(responder.model, responder.version)
        if before is not None and (before.version.sees or not sees):
            version = before.version
            described = f"{version.model}/{version.number}"
            comparisons.append(
                FaultComparison(described, before.engine, before.name, tuple(version.card["stop_token_ids"]))
            )
        return comparisons


async def _streamed(exchange: _Exchange, body: dict[str, Any], on_end: AnswerEnd, headers: dict[str, str]) -> Response:
    checked, responder, stack = exchange.checked, exchange.responder, exchange.stack
    client = responder.engine.client
    upstream = await client.send(client.build_request("POST", checked.route, json=body), stream=True)
    stack.push_async_callback(upstream.aclose)
    if upstream.status_code != 200:
        content = await upstream.aread()
        await stack.aclose()
        _end_whole(on_end, upstream.status_code)
        return Response(content, upstream.status_code, {**headers, "content-type": "application/json"})
    wants_usage, texts = checked.wants_usage, responder.answer_texts(checked.route)
    return ForwardedStream(
        upstream, stack, exchange.timer, on_end, wants_usage=wants_usage, headers=headers, texts=texts
    )


def _end_whole(on_end: AnswerEnd, status: int) -> None:
    """Report the end of a whole answer by the engine's status."""
    on_end("engine_error" if status >= 500 else None, is_refusal=400 <= status < 500)
