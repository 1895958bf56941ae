"""An engine for a caller without an event loop, such as a training. It is started once, and its first fault is final."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mlflow_finetune_plugin.errors import EngineError
from mlflow_finetune_plugin.serving.engines.commands import EngineSpec
from mlflow_finetune_plugin.serving.engines.engine import EngineProcess
from mlflow_finetune_plugin.serving.engines.liveness import LivenessLimits

_NOTICE_S = 2.0
"""Within this time after a broken connection the end of the process is known."""

Result = TypeVar("Result")


class BlockingEngine:
    """An engine process whose calls block.

    No request but the caller's reaches its model, so that equal calls in equal order get equal answers from the Transformers
    engine. It ends with ``close``, and with the process that started it, however that ends.

    Args:
        spec: What the engine is started with.
        folder: The folder for its log.
        what: What the engine does for the caller, for messages: ``sampling completions``.
        idle_s: Seconds within which it must answer a health check.
    """

    def __init__(self, spec: EngineSpec, folder: Path, *, what: str, idle_s: float = 60.0) -> None:
        self.spec, self._what = spec, what
        self._loop = asyncio.new_event_loop()
        # The kernel ends the engine with the thread that started it, and this thread lives until ``close``.
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._thread.start()
        liveness = LivenessLimits(every_s=min(15.0, idle_s), idle_s=idle_s, generates=False)
        self._engine = EngineProcess(spec, folder, liveness=liveness, restarts=False)

    @property
    def pid(self) -> int | None:
        return self._engine.pid

    def start(self) -> None:
        """Start the engine, and wait until it answers.

        Raises:
            EngineError: It ended, or was not ready in time.
            EngineChoiceError: It loads no adapters on its base.
        """

        async def started() -> None:
            self._engine.start()
            await self._engine.wait_ready()

        self._wait(started())

    def load(self, name: str, path: Path) -> None:
        """Load an adapter. Raises ServingError."""
        self._wait(self._explained(self._engine.load(name, path)))

    def unload(self, name: str) -> None:
        """Unload an adapter. Raises ServingError."""
        self._wait(self._explained(self._engine.unload(name)))

    def complete(self, bodies: Sequence[dict[str, Any]], *, timeout_s: float) -> list[dict[str, Any]]:
        """Return the answers to requests that are sent together, in their order.

        Args:
            bodies: Requests to ``/v1/completions``.
            timeout_s: Seconds that each answer may take.

        Raises:
            EngineError: The engine ended, or sent no answer in time.
            ServingError: The engine refused a request, or failed.
        """

        async def together() -> list[dict[str, Any]]:
            answers = (self._engine.complete(body, what=f"fails {self._what}", timeout_s=timeout_s) for body in bodies)
            return list(await asyncio.gather(*answers))

        return self._wait(self._explained(together()))

    def close(self, *, drain_s: float = 0.0) -> None:
        """End the engine, after ``drain_s`` seconds for it to end by itself. Closing it again does nothing."""
        if not self._thread.is_alive():
            return
        self._wait(self._engine.stop(drain_s))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _explained(self, call: Coroutine[Any, Any, Result]) -> Result:
        """Return the result of a call. If the engine ended meanwhile, the error says how, which the broken connection does not."""
        try:
            return await call
        except EngineError as error:
            fault = await self._engine.wait_ended(_NOTICE_S)
            if fault is None:
                raise
            kind, log = self.spec.kind, self._engine.log
            raise EngineError(f"the {kind} engine ended while {self._what}: {fault}; its log: {log}") from error

    def _wait(self, call: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()
