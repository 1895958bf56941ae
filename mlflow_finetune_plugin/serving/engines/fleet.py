"""The engines and their adapters. The fleet starts an engine when a version needs it, and loads, certifies and unloads versions."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mlflow_finetune_plugin.data.conversations.templates import PACKAGED_TEMPLATES
from mlflow_finetune_plugin.errors import EngineError, ServingError
from mlflow_finetune_plugin.serving.daemon_threads import in_daemon_thread
from mlflow_finetune_plugin.serving.engines.certificate import Certificate, certify, still_holds
from mlflow_finetune_plugin.serving.engines.commands import (
    EngineSpec,
    choose_engine,
    rank_limit,
    target_modules,
)
from mlflow_finetune_plugin.serving.engines.engine import EngineProcess
from mlflow_finetune_plugin.serving.engines.engine_limit import make_room
from mlflow_finetune_plugin.serving.engines.tied_weights import readable_by_vllm
from mlflow_finetune_plugin.serving.engines.trial import Trials
from mlflow_finetune_plugin.serving.settings import VLLM, EngineLimits
from mlflow_finetune_plugin.serving.versions.fetching import EngineKey, FetchedVersion
from mlflow_finetune_plugin.serving.versions.trials.template import TemplateReport, try_template
from mlflow_finetune_plugin.serving.versions.trials.tokenizer import try_tokenizer

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Resident:
    """A version with its engine.

    Attributes:
        pins: How many aliases refer to the version.
        in_flight: How many answers are running.
        last_used: The fleet's clock at the last use.
        loaded_in: The engine's generation that has the adapter; None while it is unloaded.
        certified_in: The engine's generation that passed the certificate.
        refusal: Why its files must not be loaded again; None while they are as they were verified.
    """

    version: FetchedVersion
    engine: EngineProcess
    pins: int = 0
    in_flight: int = 0
    last_used: int = 0
    loaded_in: int | None = None
    certified_in: int | None = None
    certificate: Certificate | None = None
    refusal: str | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def name(self) -> str:
        return self.version.served_name

    @property
    def identity(self) -> tuple[str, str | None]:
        """The served name and the content digest."""
        return self.name, self.version.content_digest

    @property
    def is_loaded(self) -> bool:
        return self.loaded_in is not None and self.loaded_in == self.engine.generation and self.engine.state == "ready"

    @property
    def is_ready(self) -> bool:
        """Whether the running engine has loaded and certified the version."""
        return self.is_loaded and self.certified_in == self.engine.generation


class Fleet:
    """All engines of a service.

    Args:
        engine_choice: ``auto``, ``vllm`` or ``transformers``.
        limits: What each engine may hold.
        folder: The folder for the engines' logs.
        find_base: Returns the folder of a version's base on this machine.
        on_certificate: Called with each new certificate.
        dtype: The precision of all engines; None means each base's own.
        trust_remote_code: Whether bases may run Python code of their own.
        max_loaded: Versions that stay loaded without an alias.
        trials: Watches engines while they read a version for the first time.
        max_engines: Engines that run at once; more only if aliases need more.
    """

    def __init__(
        self,
        engine_choice: str,
        limits: EngineLimits,
        folder: Path,
        find_base: Callable[[FetchedVersion], Path],
        on_certificate: Callable[[FetchedVersion, Certificate], None],
        *,
        dtype: str | None = None,
        trust_remote_code: bool = False,
        max_loaded: int = 64,
        trials: Trials | None = None,
        max_engines: int = 4,
    ) -> None:
        self._trials = trials if trials is not None else Trials()
        self._max_engines, self._started = max_engines, 0
        self._dtype, self._trust_remote_code = dtype, trust_remote_code
        self._engine_choice, self._limits, self._folder, self._find_base = engine_choice, limits, folder, find_base
        self._on_certificate, self._max_loaded = on_certificate, max_loaded
        self.engines: dict[tuple[str, EngineKey], EngineProcess] = {}
        self.residents: dict[str, Resident] = {}
        self._certified: dict[str, tuple[EngineProcess, int, Certificate]] = {}
        self._clock = 0
        self._starting = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    # requests of the router ------------------------------------------------------------------------------------------

    async def admit(self, version: FetchedVersion) -> Resident:
        """Load a version into its engine and certify it. Raises ServingError when it must not serve."""
        resident = self.residents.get(version.served_name)
        if resident is None:
            try:
                self._trials.check((version.served_name, version.content_digest))
                engine = await self._engine_for(version)
            except BaseException:
                version.adapter.release()  # no resident holds it
                raise
            resident = self.residents.setdefault(version.served_name, Resident(version, engine))
        if resident.version is not version:
            version.adapter.release()
        self._clock += 1
        resident.last_used = self._clock
        try:
            resident.in_flight += 1  # so that it is not unloaded now
            try:
                await self._make_ready(resident)
            finally:
                resident.in_flight -= 1
        except ServingError:
            await self._drop(resident)
            raise
        return resident

    @asynccontextmanager
    async def using(self, resident: Resident) -> AsyncIterator[EngineProcess]:
        """Keep a version loaded. It is loaded again if the engine was restarted. Raises EngineError, ServingError."""
        resident.in_flight += 1
        self._clock += 1
        resident.last_used = self._clock
        try:
            if resident.engine.state != "ready":
                raise EngineError(f"the engine of {resident.name} is {resident.engine.state}; fix: try again later")
            if not resident.is_ready:
                if self.residents.get(resident.name) is not resident:
                    raise ServingError(f"{resident.name} was unloaded a moment ago; fix: try again")
                await self._make_ready(resident)
            yield resident.engine
        finally:
            resident.in_flight -= 1

    def forget_unused_soon(self, but: Resident | None = None) -> None:
        """Run ``forget_unused`` in the background, so that no request waits for it."""
        task = asyncio.create_task(self.forget_unused(but))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def forget_unused(self, but: Resident | None = None) -> None:
        """Unload the least recently used versions beyond ``max_loaded`` that no alias refers to and no answer uses.

        Args:
            but: A version that is about to be used and stays.
        """
        idle = [
            candidate
            for candidate in self.residents.values()
            if candidate is not but and not candidate.pins and not candidate.in_flight and not candidate.lock.locked()
        ]
        idle.sort(key=lambda candidate: candidate.last_used)
        for resident in idle[: max(0, len(self.residents) - self._max_loaded)]:
            await self._drop(resident)

    async def withdraw(self, resident: Resident) -> None:
        """Unload a version that was deleted from the registry. Running answers finish with it."""
        await self._drop(resident)

    async def withdraw_refused(self, model: str, number: str) -> None:
        """Unload a version whose files were changed on this disk, so that it can be fetched again."""
        for resident in list(self.residents.values()):
            version = resident.version
            if resident.refusal is not None and (version.model, version.number) == (model, number):
                await self._drop(resident)

    @property
    def has_one_base(self) -> bool:
        return len({engine.spec.key.base_digest for engine in self.engines.values()}) == 1

    def faults(self) -> list[str]:
        """Return the faults of the engines that are not ready."""
        return [
            f"engine {engine.spec.kind}: {engine.fault}" for engine in self.engines.values() if engine.fault is not None
        ]

    async def stop(self) -> None:
        await asyncio.gather(*(engine.stop() for engine in self.engines.values()))
        for resident in self.residents.values():
            resident.version.adapter.release()

    # engines ---------------------------------------------------------------------------------------------------------

    async def _engine_for(self, version: FetchedVersion) -> EngineProcess:
        kind, reason = await asyncio.to_thread(choose_engine, self._engine_choice, version)
        key = version.engine_key(self._dtype)
        if version.base["trust_remote_code"] and not self._trust_remote_code:
            raise ServingError(
                f"{version.model}/{version.number}: its base runs the Python code in its repository; fix: --trust-remote-code, if you trust it"
            )
        engine = self.engines.get((kind, key)) or await self._start(kind, key, version, reason)
        rank = version.rank
        if kind == VLLM and rank is not None and rank > engine.spec.max_rank:
            raise ServingError(
                f"{version.model}/{version.number}: rank {rank} is above its engine's limit of {engine.spec.max_rank}; "
                f"fix: --max-rank {rank}"
            )
        return engine

    async def _start(self, kind: str, key: EngineKey, version: FetchedVersion, reason: str) -> EngineProcess:
        """Start engines one at a time, because two versions may need the same one. Finding a base may take minutes."""
        async with self._starting:
            engine = self.engines.get((kind, key))
            if engine is None:
                await make_room(self.engines, self.residents, self._max_engines, self._drop)
                self._started += 1
                base = await in_daemon_thread(self._find_base, version)
                template = await self._try_chats(version, base)
                folder = self._folder / f"{kind}-{key.base_digest[:12]}-{self._started}"
                if kind == VLLM:
                    base = await in_daemon_thread(readable_by_vllm, base, folder / "base")
                spec = await in_daemon_thread(self._spec, kind, key, version, base, template)
                engine = EngineProcess(spec, folder, partial(self._engine_is_ready, kind, key))
                self.engines[kind, key] = engine
                logger.info("engine_chosen kind=%s version=%s reason=%s", kind, version.served_name, reason)
                engine.start()
        return engine

    async def _try_chats(self, version: FetchedVersion, base: Path) -> TemplateReport:
        """Use tokenizer and chat template in a process with limits, before an engine reads them. Raises ServingError, each time."""
        name = f"{version.model}/{version.number}"
        try:
            await asyncio.to_thread(try_tokenizer, version.tokenizer, base, name)
            report = await asyncio.to_thread(try_template, version.tokenizer, base, PACKAGED_TEMPLATES, name)
        except ServingError as error:
            raise self._trials.refuse((version.served_name, version.content_digest), str(error)) from error
        if report.lines:
            logger.warning("template_differs version=%s %s: %s", name, report.summary, json.dumps(report.difference))
        return report

    def _engine_is_ready(self, kind: str, key: EngineKey) -> None:
        """Load and certify the aliases' versions again after a restart, before a request needs them."""
        for resident in self.residents.values():
            if resident.engine is self.engines.get((kind, key)) and resident.pins:
                task = asyncio.create_task(self._make_ready_again(resident))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _make_ready_again(self, resident: Resident) -> None:
        try:
            await self._make_ready(resident)
        except ServingError as error:
            logger.error("reload_failed version=%s fault=%s", resident.name, error)

    def _spec(
        self, kind: str, key: EngineKey, version: FetchedVersion, base: Path, template: TemplateReport
    ) -> EngineSpec:
        card = version.base
        return EngineSpec(
            kind=kind,
            key=key,
            base_name=base_name(card["name"]),
            base=base,
            tokenizer=version.tokenizer,
            attn_implementation=card.get("attn_implementation"),
            trust_remote_code=bool(card["trust_remote_code"]),
            max_rank=rank_limit(version.rank, self._limits.max_rank) if kind == VLLM else 0,
            target_modules=target_modules(base, version) if kind == VLLM else (),
            limits=self._limits,
            template=template,
            sees=version.sees,
        )

    # adapters --------------------------------------------------------------------------------------------------------

    async def _make_ready(self, resident: Resident) -> None:
        async with resident.lock:
            if resident.refusal is not None:
                raise ServingError(resident.refusal)
            await resident.engine.wait_ready()
            generation = resident.engine.generation
            if resident.loaded_in != generation:
                await self._check_files(resident)
                loading = partial(resident.engine.load, resident.name, resident.version.adapter.folder)
                await self._trials.run(resident.identity, resident.engine, loading)
                resident.loaded_in = generation
            if resident.certified_in == generation:
                return
            certifying = partial(self._certify, resident, generation)
            resident.certificate = await self._trials.run(resident.identity, resident.engine, certifying)
            self._trials.passed(resident.identity)
            resident.certified_in = generation

    async def _check_files(self, resident: Resident) -> None:
        """Check the files of a version before they are read, because they may have changed since they were fetched."""
        try:
            await asyncio.to_thread(resident.version.check_files)
        except (ServingError, OSError) as error:
            resident.refusal = f"{resident.version.model}/{resident.version.number} must not serve: {error}"
            raise ServingError(resident.refusal) from error

    async def _certify(self, resident: Resident, generation: int) -> Certificate:
        """Certify a version. If this start of the engine has certified it before, one probe is enough."""
        reference, version = resident.version.reference, f"{resident.version.model}/{resident.version.number}"
        earlier = self._certified.get(resident.name)
        if earlier is not None and earlier[:2] == (resident.engine, generation):
            if await still_holds(earlier[2], resident.engine, resident.name, reference):
                return earlier[2]
            logger.error("certificate_broken version=%s", resident.name)
        card = resident.version.card
        certificate = await certify(
            resident.engine,
            resident.name,
            reference,
            version=version,
            content_digest=resident.version.content_digest,
            stop_token_ids=card["stop_token_ids"],
            answer_prefix=card.get("answer_prefix", ""),
        )
        self._on_certificate(resident.version, certificate)
        if not certificate.passed:
            raise ServingError(f"{version} must not serve: {certificate.reason}")
        self._certified[resident.name] = (resident.engine, generation, certificate)
        return certificate

    async def _drop(self, resident: Resident) -> None:
        """Unload a version and release its adapter, unless a request needs it meanwhile. A failed unload is logged."""
        async with resident.lock:
            if self.residents.get(resident.name) is not resident or resident.pins or resident.in_flight:
                return
            was_loaded = resident.is_loaded
            resident.loaded_in = resident.certified_in = None  # first, so that requests from now on wait for the lock
            if was_loaded:
                try:
                    await resident.engine.unload(resident.name)
                except ServingError as error:
                    logger.warning("unload_failed version=%s fault=%s", resident.name, error)
            if resident.pins or resident.in_flight:
                return  # a request that waits for the lock loads it again
            self.residents.pop(resident.name, None)
            resident.version.adapter.release()
            logger.info("unloaded version=%s", resident.name)


def base_name(name: str) -> str:
    """Return the name of a base in requests: its hub name, or the name of its folder."""
    return Path(name).name if name.startswith((".", "/", "~")) else name
