"""How long each version's answers took, told to the registry for whoever judges it; the newest answers only."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import deque
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import in_short
from mlflow_finetune_plugin.latencies import TAG, summary_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

_KEPT = 1000
_EVERY_S = 60.0


class LatencyLog:
    """``note`` is called for each answer that did not fail; ``run`` writes what is new, as a tag of the version a minute."""

    def __init__(self, client: MlflowClient, port: int, *, every_s: float = _EVERY_S) -> None:
        self._client, self._every_s = client, every_s
        self._tag = f"{TAG}{socket.gethostname()}-{port}"
        self._times: dict[tuple[str, str], deque[tuple[float, float]]] = {}
        self._new: set[tuple[str, str]] = set()

    def note(self, model: str, version: str, took_ms: float) -> None:
        """``version``: a number; ``took_ms``: from the request to the end of its answer."""
        place = (model, version)
        self._times.setdefault(place, deque(maxlen=_KEPT)).append((time.time(), took_ms))
        self._new.add(place)

    async def run(self) -> None:
        """Until cancelled. The last minute is not told then: a registry that is away would hold up the end."""
        while True:
            await asyncio.sleep(self._every_s)
            await asyncio.to_thread(self.write)

    def write(self) -> None:
        """Blocks. What cannot be written now is written the next time."""
        for model, version in sorted(self._new):
            told = summary_of(list(self._times[model, version])).to_json()
            try:
                self._client.set_model_version_tag(model, version, self._tag, told)
            except Exception as error:  # each kind of registry has errors of its own; serving goes on
                logger.warning("latency_not_written version=%s/%s fault=%s", model, version, in_short(error))
                if getattr(error, "error_code", None) != "RESOURCE_DOES_NOT_EXIST":
                    return  # it may take them the next time; one that is gone takes none any more
            self._new.discard((model, version))
