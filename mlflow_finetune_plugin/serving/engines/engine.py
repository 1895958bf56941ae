"""Run an engine as a child process: start it, send it requests, restart it when it dies, drain and end it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import httpx

from mlflow_finetune_plugin.errors import EngineChoiceError, EngineError, ServingError
from mlflow_finetune_plugin.serving.engines.commands import COMMANDS, EngineSpec
from mlflow_finetune_plugin.serving.engines.liveness import LivenessLimits, WatchedTransport, until_silent

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
_READY_S = 900.0
_LONGEST_BACKOFF_S = 30.0
_DRAIN_S = 40.0
_ANSWER_S = 300.0
_LOG_TAIL = 2000
_NO_ADAPTERS = re.compile(rb"(\w+) does not support LoRA yet")
"""What vLLM writes before it ends (vllm/v1/worker/lora_model_runner_mixin.py)."""
_LEASH = (sys.executable, "-m", "mlflow_finetune_plugin.serving.engines.leash")

State = Literal["starting", "ready", "down", "stopped"]


class EngineProcess:
    """An engine of one base.

    Attributes:
        refusal: Why it is not started again: it loads no adapters on its base. None while that is not known.
        generation: Counts the starts. Adapters that were loaded into an earlier generation are gone.
        noise: The generation, and the difference in nats between repeated requests to its base; ``certify`` sets it.

    Args:
        spec: What the engine is started with.
        folder: The folder for its log.
        on_ready: Called after each start.
        ready_s: Seconds that a start may take.
        liveness: How long it may be silent before it is replaced.
        restarts: Whether it is started again when it ends.
    """

    def __init__(
        self,
        spec: EngineSpec,
        folder: Path,
        on_ready: Callable[[], None] | None = None,
        *,
        ready_s: float = _READY_S,
        liveness: LivenessLimits | None = None,
        restarts: bool = True,
    ) -> None:
        self.spec, self.folder = spec, folder
        self._on_ready = on_ready or (lambda: None)
        self.state: State = "starting"
        self.generation = 0
        self.fault: str | None = None
        self.restarts = 0
        self.refusal: str | None = None
        self.noise: tuple[int, float] | None = None
        self._ready_s, self._restarts = ready_s, restarts
        self._key = secrets.token_urlsafe(32)
        self._port = free_port()
        self._process: asyncio.subprocess.Process | None = None
        self._leash: int | None = None
        self._ready = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._liveness = liveness if liveness is not None else LivenessLimits()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._transport = WatchedTransport(httpx.AsyncHTTPTransport(limits=limits))
        self.client = self._new_client(self._transport, httpx.Timeout(None, connect=10.0))
        self._prober = self._new_client(httpx.AsyncHTTPTransport(), httpx.Timeout(None))

    def _new_client(self, transport: httpx.AsyncBaseTransport, timeout: httpx.Timeout) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"http://{HOST}:{self._port}",
            headers={"Authorization": f"Bearer {self._key}"},
            timeout=timeout,
            transport=transport,
            trust_env=False,  # a proxy of the environment is not for loopback
        )

    @property
    def running(self) -> int:
        """The number of requests whose answers have not ended."""
        return self._transport.running

    @property
    def log(self) -> Path:
        return self.folder / "engine.log"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Begin to start the engine, and return at once; ``wait_ready`` waits until it answers."""
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())

    async def wait_ready(self, timeout_s: float | None = None) -> None:
        """Wait until the engine answers.

        Raises:
            EngineError: It does not in time, or is not started again.
            EngineChoiceError: It loads no adapters on its base.
        """
        waiting = asyncio.ensure_future(self._ready.wait())
        keeper = self._keeper
        try:
            watched = {waiting} | ({keeper} if keeper is not None else set())
            await asyncio.wait(watched, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if self.refusal is not None:
            raise EngineChoiceError(self.refusal)
        if not self._ready.is_set():
            raise EngineError(
                f"the {self.spec.kind} engine is not ready: {self.fault or self.state}; its log: {self.log}"
            )

    async def wait_ended(self, timeout_s: float) -> str | None:
        """Wait until an engine that is not restarted has ended. Returns why; None if it still runs after ``timeout_s`` seconds."""
        if self._keeper is not None:
            await asyncio.wait({self._keeper}, timeout=timeout_s)
        return self.fault

    async def stop(self, drain_s: float = _DRAIN_S) -> None:
        """Let running answers end, for at most ``drain_s`` seconds, then end the engine."""
        answers = self.state == "ready"
        self.state = "stopped"
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self._end(drain_s if answers else 0.0)  # while it starts, vLLM ignores signals
        self._ready.clear()
        await self.client.aclose()
        await self._prober.aclose()

    def kill(self) -> None:
        """End an engine that no longer answers, at once. It is started again, unless it is not to be."""
        process = self._process
        if process is not None and process.returncode is None:
            logger.error("engine_blocked kind=%s: it no longer answers, and is ended", self.spec.kind)
            self._ready.clear()
            self.state = "down"
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.killpg(process.pid, signal.SIGKILL)

    # adapters --------------------------------------------------------------------------------------------------------

    async def load(self, name: str, path: Path) -> None:
        """Load an adapter. Raises ServingError when the engine refuses it."""
        body = {"lora_name": name, "lora_path": str(path)}
        await self._ask("/v1/load_lora_adapter", body, f"refuses adapter {name}")

    async def unload(self, name: str) -> None:
        await self._ask("/v1/unload_lora_adapter", {"lora_name": name}, f"cannot unload {name}")

    async def complete(
        self,
        body: dict[str, Any],
        route: str = "/v1/completions",
        *,
        what: str = "refuses a request of the router itself",
        timeout_s: float = _ANSWER_S,
    ) -> dict[str, Any]:
        """Return one whole answer.

        Args:
            body: The request.
            route: Where it is sent.
            what: What the engine does if it fails, for messages.
            timeout_s: Seconds that the answer may take.

        Raises:
            EngineError: There was no answer.
            ServingError: The engine refused the request, or failed.
        """
        response = await self._ask(route, body, what, timeout_s)
        return dict(response.json())

    async def _ask(self, route: str, body: dict[str, Any], what: str, timeout_s: float = _ANSWER_S) -> httpx.Response:
        try:
            answer = await self.client.post(route, json=body, timeout=timeout_s)
        except httpx.HTTPError as error:
            raise EngineError(f"the {self.spec.kind} engine {what}: {type(error).__name__}: {error}") from error
        if answer.status_code != 200:
            raise ServingError(f"the {self.spec.kind} engine {what}: {answer.status_code} {answer.text[:500]}")
        return answer

    # its life --------------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Start the engine, and restart it whenever it ends, after a pause that doubles until a start succeeds."""
        pause = 1.0
        while self.state != "stopped":
            started = time.monotonic()
            try:
                await self._start_once()
            except (ServingError, OSError) as error:
                self.fault = str(error)
                logger.error("engine_failed kind=%s fault=%s", self.spec.kind, error)
                if isinstance(error, EngineChoiceError):
                    self.refusal, self.state = self.fault, "down"
                    await self._end(0.0)
                    return
            else:
                pause = 1.0
                code, silence = await self._until_ended()
                self.fault = silence or f"it ended with code {code}: {self._tail()}"
                logger.error(
                    "engine_died kind=%s code=%s after_s=%.0f", self.spec.kind, code, time.monotonic() - started
                )
            self._ready.clear()
            self.state = "down"
            await self._end(0.0)
            if not self._restarts:
                return
            await asyncio.sleep(pause)
            pause = min(_LONGEST_BACKOFF_S, 2 * pause)
            self.restarts += 1

    async def _until_ended(self) -> tuple[int | None, str | None]:
        """Wait until the process ends, and end it if it hangs. Returns its exit code, and why it counted as hanging."""
        process = self._process
        if process is None:
            return None, None
        ending = asyncio.ensure_future(process.wait())
        watching = asyncio.ensure_future(
            until_silent(
                self._transport,
                self._liveness,
                partial(self._prober.get, "/health"),
                partial(self._prober.post, "/v1/completions", json=self._short_request()),
            )
        )
        silence = None
        try:
            await asyncio.wait({ending, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not ending.done():
                self.fault = silence = watching.result()
                logger.error("engine_hangs kind=%s fault=%s", self.spec.kind, silence)
                self.kill()
            return await ending, silence
        finally:
            watching.cancel()
            ending.cancel()

    async def _start_once(self) -> None:
        self.state = "starting"
        await asyncio.to_thread(self.spec.check_files)
        self._port = free_port()  # the last one may be in use by now
        self.client.base_url = self._prober.base_url = httpx.URL(f"http://{HOST}:{self._port}")
        self.folder.mkdir(parents=True, exist_ok=True)
        command = COMMANDS[self.spec.kind](self.spec, HOST, self._port, self._key, self.folder)
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.1"))  # the log of the previous start
        read_end, self._leash = os.pipe()  # open until `_end`; the kernel closes it when the router is killed
        try:
            with self.log.open("wb") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *_LEASH,
                    *command.arguments,
                    env={**os.environ, **command.environment},
                    stdin=read_end,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        finally:
            os.close(read_end)
        deadline = time.monotonic() + self._ready_s
        while not await self.is_healthy():
            if self._process.returncode is not None:
                self._check_takes_adapters()
                raise ServingError(f"it ended with code {self._process.returncode} while starting: {self._tail()}")
            if time.monotonic() > deadline:
                raise ServingError(f"it was not ready after {self._ready_s:.0f} s: {self._tail()}")
            await asyncio.sleep(0.1)
        await self._warm_up()
        self.generation += 1
        self.fault, self.state = None, "ready"
        logger.info("engine_ready kind=%s base=%s port=%d", self.spec.kind, self.spec.base_name, self._port)
        self._ready.set()
        self._on_ready()

    async def is_healthy(self) -> bool:
        """Return whether the engine answers within 5 seconds."""
        try:
            return (await self.client.get("/health", timeout=5.0)).status_code == 200
        except httpx.HTTPError:
            return False

    async def _warm_up(self) -> None:
        """Send the first requests, which compile and allocate, so that no client waits for that."""
        for extra in ({}, {"prompt_logprobs": 0}):
            await self.complete({**self._short_request(), **extra})

    def _short_request(self) -> dict[str, Any]:
        return {"model": self.spec.base_name, "prompt": "a", "max_tokens": 2, "temperature": 0}

    async def _end(self, drain_s: float) -> None:
        """End the engine and its processes, after ``drain_s`` seconds for its running answers."""
        process = self._process
        if process is not None and process.returncode is None and drain_s:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), drain_s)
            except TimeoutError:
                logger.warning("engine_killed kind=%s", self.spec.kind)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):  # no process of the group is left
                os.killpg(process.pid, signal.SIGKILL)  # its child processes may outlive it
                await process.wait()
        self._process = None  # another process may get its id
        if self._leash is not None:
            os.close(self._leash)
            self._leash = None

    def _check_takes_adapters(self) -> None:
        """Raise EngineChoiceError if vLLM ended because its class of this base loads no adapters."""
        match = _NO_ADAPTERS.search(self.log.read_bytes())
        if match is not None:
            family = match[1].decode()
            raise EngineChoiceError(
                f"the {self.spec.kind} engine loads no adapters on {self.spec.base_name} ({family} does not support LoRA in the "
                "installed vLLM); fix: --engine transformers"
            )

    def _tail(self) -> str:
        """Return the end of its log, in one line."""
        try:
            return " ".join(self.log.read_bytes()[-_LOG_TAIL:].decode("utf-8", "replace").split())
        except FileNotFoundError:
            return "no log"


def free_port() -> int:
    """Return a port of loopback that no process listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
