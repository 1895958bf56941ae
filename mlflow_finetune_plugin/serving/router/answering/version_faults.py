"""Tell the failures of a version from those that a request causes, so that no client can bring about a rollback.

When an engine fails to answer as a version, the base on the same engine is asked the same, and then the version before, if it is
loaded. If one of them fails too, the request or the engine caused it, or a rollback would not help, and the failure is not counted
against the version. Equal requests count once, and so do all answers of
a version that are lost with one process of an engine: otherwise one end of an engine would count as many failures as there
were answers under way.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from mlflow_finetune_plugin.serving.engines.engine import EngineProcess
from mlflow_finetune_plugin.serving.router.first_answers import Draw
from mlflow_finetune_plugin.serving.router.requests import CheckedRequest

logger = logging.getLogger(__name__)

_AT_ONCE = 4
_AT_ONCE_BY_KEY = 2
_TIMEOUT_S = 60.0
_REMEMBERED = 10_000
_MOST_TOKENS = 16
"""Tokens that the others are asked for; a request that no engine can answer fails at the first ones."""


@dataclass(frozen=True)
class FaultComparison:
    """The base or another version, which is asked what a version failed to answer.

    Attributes:
        description: For the log.
        name: Its name in the engine.
        stop_token_ids: Tokens that end its answers, besides the engine's own.
    """

    description: str
    engine: EngineProcess
    name: str
    stop_token_ids: Sequence[int] = ()


class VersionFaults:
    """Decides about failed answers in the background.

    Args:
        note_failure: Receives model, version, draw and API key of a failure that counts against the version.
    """

    def __init__(self, note_failure: Callable[[str, str, Draw | None, str | None], None]) -> None:
        self._note_failure = note_failure
        self._seen: OrderedDict[tuple[str, str, str, str | None], None] = OrderedDict()
        self._tasks: dict[asyncio.Task[None], str | None] = {}

    def report(
        self,
        request_id: str,
        checked: CheckedRequest,
        comparisons: Sequence[FaultComparison],
        model: str,
        version: str,
        draw: Draw | None = None,
        key: str | None = None,
    ) -> None:
        """Take an answer that an engine failed to give, and compare it with others. While four are being checked, two of them for one API key,
        further ones are not counted.
        """
        fault = (model, version, _digest(checked), key)  # equal requests of two keys are two signs of a fault
        if fault in self._seen:
            return
        by_key = 0 if key is None else sum(other == key for other in self._tasks.values())
        if len(self._tasks) >= _AT_ONCE or by_key >= _AT_ONCE_BY_KEY:
            logger.info("fault_not_checked id=%s version=%s/%s", request_id, model, version)
            return
        self._is_new(fault)
        task = asyncio.create_task(self._check(request_id, checked, comparisons, model, version, draw, key))
        self._tasks[task] = key
        task.add_done_callback(self._tasks.pop)

    def report_lost(
        self, engine: EngineProcess, model: str, version: str, draw: Draw | None = None, key: str | None = None
    ) -> None:
        """Take an answer that ended with its engine."""
        process = f"{id(engine)} {engine.generation}"
        if self._is_new((model, version, process, None)):
            self._note_failure(model, version, draw, key)

    def _is_new(self, fault: tuple[str, str, str, str | None]) -> bool:
        if fault in self._seen:
            return False
        self._seen[fault] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return True

    async def _check(
        self,
        request_id: str,
        checked: CheckedRequest,
        comparisons: Sequence[FaultComparison],
        model: str,
        version: str,
        draw: Draw | None,
        key: str | None,
    ) -> None:
        for comparison in comparisons:
            if await _fails(checked, comparison):
                what = f"{comparison.description} fails too"
                logger.warning("fault_of_request id=%s version=%s/%s: %s", request_id, model, version, what)
                return
        answering = " and ".join(comparison.description for comparison in comparisons)
        logger.warning("fault_of_version id=%s version=%s/%s: answered by %s", request_id, model, version, answering)
        self._note_failure(model, version, draw, key)


async def _fails(checked: CheckedRequest, comparison: FaultComparison) -> bool:
    """Return whether an engine fails to answer as the base or as another version. One that is not loaded (404) does not."""
    body = _short_request(checked, comparison)
    try:
        answer = await comparison.engine.client.post(checked.route, json=body, timeout=_TIMEOUT_S)
    except httpx.HTTPError:
        return True
    return answer.status_code >= 500


def _short_request(checked: CheckedRequest, comparison: FaultComparison) -> dict[str, Any]:
    body = checked.for_engine(comparison.name, list(comparison.stop_token_ids))
    limits = [body.pop("max_tokens", None), body.pop("max_completion_tokens", None)]
    tokens = min([_MOST_TOKENS, *(limit for limit in limits if limit is not None)])
    body["max_tokens"] = tokens
    if "min_tokens" in body:
        body["min_tokens"] = min(body["min_tokens"], tokens)
    for field in ("stream", "stream_options"):
        body.pop(field, None)
    return body


def _digest(checked: CheckedRequest) -> str:
    asked = {key: value for key, value in checked.body.items() if key not in ("model", "user", "stream", "metadata")}
    return hashlib.sha256(json.dumps([checked.route, asked], sort_keys=True).encode()).hexdigest()
