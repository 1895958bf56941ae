"""Watch an engine while it loads and certifies a version for the first time, so that no version can block it for long."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from mlflow_finetune_plugin.errors import EngineError, ServingError
from mlflow_finetune_plugin.serving.engines.engine import EngineProcess

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
_LONGEST_SILENCE_S = 60.0
_CHECK_S = 2.0
_MOST_DEATHS = 2


class Trials:
    """The versions that blocked or ended an engine. They are refused until the router is started again.

    Args:
        longest_silence_s: Seconds without an answer after which an engine counts as blocked.
    """

    def __init__(self, longest_silence_s: float = _LONGEST_SILENCE_S) -> None:
        self._longest_silence_s = longest_silence_s
        self._refusals: dict[tuple[str, str | None], str] = {}
        self._deaths: dict[tuple[str, str | None], int] = {}

    def check(self, version: tuple[str, str | None]) -> None:
        """Raise ServingError if a version was refused. ``version`` is its served name and content digest."""
        if version in self._refusals:
            raise ServingError(self._refusals[version])

    async def run(
        self, version: tuple[str, str | None], engine: EngineProcess, work: Coroutine[Any, Any, Result]
    ) -> Result:
        """Run a request that makes an engine read a version which is not certified yet.

        If the engine stops to answer, it is killed and started again. The second time that the engine ends, the version is
        refused, too.

        Raises:
            ServingError: The version must not be loaded again.
        """
        task = asyncio.ensure_future(work)
        generation, answered_at = engine.generation, time.monotonic()
        try:
            while not (await asyncio.wait({task}, timeout=_CHECK_S))[0]:
                if await engine.is_healthy():
                    answered_at = time.monotonic()
                elif engine.state == "ready" and time.monotonic() - answered_at > self._longest_silence_s:
                    engine.kill()
                    raise self._refuse(version, f"the engine did not answer for {self._longest_silence_s:.0f} s")
            return task.result()
        except EngineError as error:
            if engine.pid is None or engine.generation != generation or engine.state != "ready":
                self._deaths[version] = self._deaths.get(version, 0) + 1
            if self._deaths.get(version, 0) >= _MOST_DEATHS:
                raise self._refuse(version, f"the engine ended {_MOST_DEATHS} times") from error
            raise
        finally:
            task.cancel()

    def _refuse(self, version: tuple[str, str | None], fault: str) -> ServingError:
        fix = "look into its adapter and its chat template, and register it again"
        return self.refuse(version, f"{version[0]} must not serve: {fault} while it read this version; fix: {fix}")

    def refuse(self, version: tuple[str, str | None], message: str) -> ServingError:
        """Remember that a version must not be loaded, and return the error."""
        logger.error("version_refused %s", message)
        self._refusals[version] = message
        return ServingError(message)
