"""Report to the registry how each version answers: its failures and its latencies."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import in_short
from mlflow_finetune_plugin.serving.router.first_answers import Draw, FirstAnswers
from mlflow_finetune_plugin.serving.router.key_failures import KeyFailures
from mlflow_finetune_plugin.store.latency_counts import LatencyCounts, bucket_of
from mlflow_finetune_plugin.store.names import SERVED_TAG
from mlflow_finetune_plugin.store.served_tags import ServedSummary, latency_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

_MAX_TIMES = 1000


@dataclass
class _Count:
    first_answers: int = 0
    first_failed: int = 0
    failures: KeyFailures = field(default_factory=KeyFailures)
    buckets: Counter[int] = field(default_factory=Counter)
    times: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_MAX_TIMES))


class ServedLog:
    """Collects the ends of answers, and writes them as a tag of each version.

    Args:
        client: The registry.
        port: The router's port, which is part of the tag's name.
        every_s: Seconds between two reports.
    """

    def __init__(self, client: MlflowClient, port: int, *, every_s: float) -> None:
        self._client, self._every_s = client, every_s
        self._tag = f"{SERVED_TAG}{socket.gethostname()}-{port}"
        self._begun = round(time.time(), 1)
        self._counts: dict[tuple[str, str], _Count] = {}
        self._new: set[tuple[str, str]] = set()
        self._first = FirstAnswers()

    def note(
        self, model: str, version: str, took_ms: float | None, draw: Draw | None = None, key: str | None = None
    ) -> None:
        """Count an answer that ended.

        Args:
            model: The registered model.
            version: The version's number.
            took_ms: Milliseconds from the request to the end of the answer; None if it failed.
            draw: How the request's alias was chosen; None where the request names it.
            key: The name of the request's API key; None where the failures of a key are not limited.
        """
        count = self._counts.setdefault((model, version), _Count())
        failing_key = key if took_ms is None else None
        if self._first.is_counted(model, draw, failing_key):
            count.first_answers += 1
            count.first_failed += took_ms is None
        if took_ms is None:
            count.failures.add(key)
        else:
            count.buckets[bucket_of(took_ms)] += 1
            count.times.append((time.time(), took_ms))
        self._new.add((model, version))

    async def run(self) -> None:
        """Report until cancelled. The last answers are not reported, because a dead registry would delay the end."""
        while True:
            await asyncio.sleep(self._every_s)
            summaries = {key: self._summary(key) for key in sorted(self._new)}
            self._new.clear()
            self._new |= await asyncio.to_thread(self._write, summaries)

    def _summary(self, key: tuple[str, str]) -> ServedSummary:
        count = self._counts[key]
        recent = latency_of(list(count.times)) if count.times else None
        latencies = LatencyCounts.of_buckets(count.buckets)
        first = (count.first_answers, count.first_failed)
        failed, left_out = count.failures.counted, count.failures.left_out
        return ServedSummary(self._begun, latencies.total + failed, failed, recent, latencies, *first, left_out)

    def _write(self, summaries: dict[tuple[str, str], ServedSummary]) -> set[tuple[str, str]]:
        """Write the tags. It blocks. Returns the versions to report again next time."""
        left = set(summaries)
        for (model, version), summary in summaries.items():
            try:
                self._client.set_model_version_tag(model, version, self._tag, summary.to_json())
            except Exception as error:  # each kind of registry raises different errors; serving continues
                logger.warning("served_not_written version=%s/%s fault=%s", model, version, in_short(error))
                if getattr(error, "error_code", None) != "RESOURCE_DOES_NOT_EXIST":
                    return left  # the registry may accept them next time; a deleted version never does
            left.discard((model, version))
        return left
