"""Watch an engine while it loads and certifies a version for the first time, so that no version can block it for long."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

from mlflow_finetune_plugin.errors import EngineError, ServingError
from mlflow_finetune_plugin.serving.engines.engine import EngineProcess

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Identity = tuple[str, str | None]
"""The served name and the content digest of a version."""

_LONGEST_SILENCE_S = 60.0
_CHECK_S = 2.0
_MOST_DEATHS = 3


class Trials:
    """The versions that blocked or ended an engine. They are refused until the router is started again.

    Args:
        longest_silence_s: Seconds without an answer after which an engine counts as blocked.
    """

    def __init__(self, longest_silence_s: float = _LONGEST_SILENCE_S) -> None:
        self._longest_silence_s = longest_silence_s
        self._refusals: dict[Identity, str] = {}
        self._deaths: dict[Identity, int] = {}
        self._certified: set[Identity] = set()
        self._turns: WeakKeyDictionary[EngineProcess, asyncio.Lock] = WeakKeyDictionary()

    def check(self, version: Identity) -> None:
        """Raise ServingError if a version was refused. ``version`` is its served name and content digest."""
        if version in self._refusals:
            raise ServingError(self._refusals[version])

    async def run(self, version: Identity, engine: EngineProcess, work: Callable[[], Awaitable[Result]]) -> Result:
        """Let an engine read a version: load or certify it.

        Versions that were not certified before take turns, so that none is refused for what another one did. If the engine
        stops to answer meanwhile, it is killed and started again, and the version is refused. So is a version with which the
        engine ended several times in turn.

        Raises:
            ServingError: The version must not be loaded again.
        """
        if version in self._certified:
            return await work()
        async with self._turns.setdefault(engine, asyncio.Lock()):
            self.check(version)
            return await self._watch(version, engine, asyncio.ensure_future(work()))

    def passed(self, version: Identity) -> None:
        """Note that a version was certified."""
        self._certified.add(version)
        self._deaths.pop(version, None)

    async def _watch(self, version: Identity, engine: EngineProcess, task: asyncio.Future[Result]) -> Result:
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
            if engine.generation != generation or not await engine.is_healthy():
                self._deaths[version] = self._deaths.get(version, 0) + 1
            if self._deaths.get(version, 0) >= _MOST_DEATHS:
                raise self._refuse(version, f"the engine ended {_MOST_DEATHS} times") from error
            raise
        finally:
            task.cancel()

    def _refuse(self, version: Identity, fault: str) -> ServingError:
        fix = "look into its adapter and its chat template, and register it again"
        return self.refuse(version, f"{version[0]} must not serve: {fault} while it read this version; fix: {fix}")

    def refuse(self, version: Identity, message: str) -> ServingError:
        """Remember that a version must not be loaded, and return the error."""
        logger.error("version_refused %s", message)
        self._refusals[version] = message
        return ServingError(message)
