"""Copies of requests for the shadow versions of a model. Their answers are counted and thrown away."""

from __future__ import annotations

import asyncio
import logging

from mlflow_finetune_plugin.errors import ServingError
from mlflow_finetune_plugin.serving.engines.fleet import Fleet
from mlflow_finetune_plugin.serving.router.answering.answers import whole_answer
from mlflow_finetune_plugin.serving.router.answering.responders import Responder
from mlflow_finetune_plugin.serving.router.follower import Follower
from mlflow_finetune_plugin.serving.router.metrics import Metrics, RequestTimer
from mlflow_finetune_plugin.serving.router.requests import CheckedRequest

logger = logging.getLogger(__name__)

_AT_ONCE = 4


class ShadowTraffic:
    """Sends copies of requests in the background; copies beyond a few at once are dropped and counted."""

    def __init__(self, follower: Follower, fleet: Fleet, metrics: Metrics) -> None:
        self._follower, self._fleet, self._metrics = follower, fleet, metrics
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, checked: CheckedRequest, responder: Responder) -> None:
        """Send the request to the model's shadow versions too, without waiting for them."""
        model = self._follower.snapshot.get(responder.model)
        if model is None or responder.resident is None:
            return
        for alias in model.traffic.shadows(model.aliases):
            target = self._follower.targets.get((responder.model, alias))
            if target is None or target.resident is None or target.resident is responder.resident:
                continue
            if checked.pictures and not target.resident.version.sees:
                continue  # it would refuse the request, which says nothing about it
            if len(self._tasks) >= _AT_ONCE:
                self._metrics.refused.labels("shadow_dropped").inc()
                continue
            task = asyncio.create_task(self._answer(checked, Responder.of_resident(target.resident, alias)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, checked: CheckedRequest, responder: Responder) -> None:
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
