"""Follows the registry: each alias means a version that is loaded and certified, and moves only to another such version.

On a change the new version is fetched, verified, loaded, certified; then the alias is flipped in one step. Answers that began
with the old version end with it. When anything fails, the last version that was good stays.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow_finetune_plugin.errors import EngineError, FinetuneError, ServingError, StoreError, TrackingError
from mlflow_finetune_plugin.serving.engines.fleet import Fleet, Resident
from mlflow_finetune_plugin.serving.versions.catalog import Catalog, CatalogModel, Snapshot
from mlflow_finetune_plugin.serving.versions.fetching import FetchedVersion, Fetcher
from mlflow_finetune_plugin.serving.versions.traffic import Traffic, read_traffic
from mlflow_finetune_plugin.store.model_ref import ModelRef
from mlflow_finetune_plugin.store.names import SHADOW_TAG, SPLIT_TAG

logger = logging.getLogger(__name__)

_LONGEST_RETRY_S = 60.0
_REFUSED_S = 10.0
_LONGEST_LOAD_S = 60.0
_MOST_REFUSED = 1000
_FETCHES = 2


class UnknownModelError(ServingError):
    """Nobody serves that name."""


class NotReadyError(ServingError):
    """The name is right, and its version cannot answer now."""


@dataclass(eq=False)
class Target:
    """An alias. ``wanted``: the version that the registry names; ``resident``: the one that answers."""

    model: str
    alias: str
    registered: str
    resident: Resident | None = None
    fault: str | None = None
    failures: int = 0
    retry_at: float = 0.0
    moving: asyncio.Task[None] | None = None

    @property
    def serves(self) -> str | None:
        return self.resident.version.number if self.resident is not None else None


@dataclass
class Health:
    """Of the registry: when it last answered, and what was wrong since."""

    answered_at: float | None = None
    fault: str | None = None
    traffic_problems: tuple[str, ...] = ()
    swaps: int = 0
    failed_swaps: int = 0


class Follower:
    """``poll_s``: how long an alias may lag behind the registry when nothing wakes the follower earlier."""

    def __init__(self, catalog: Catalog, fetcher: Fetcher, fleet: Fleet, folder: Path, *, poll_s: float = 1.0) -> None:
        self._catalog, self._fetcher, self._fleet = catalog, fetcher, fleet
        self._memory, self._poll_s = folder / "aliases.json", poll_s
        self._fetches = {is_move: asyncio.Semaphore(_FETCHES) for is_move in (True, False)}
        self._wake = asyncio.Event()
        self._loading: dict[tuple[str, str, bool], asyncio.Task[Resident]] = {}
        self._refused: OrderedDict[tuple[str, str], tuple[float, UnknownModelError | NotReadyError]] = OrderedDict()
        self.snapshot: Snapshot = {}
        self.targets: dict[tuple[str, str], Target] = {}
        self.health = Health()

    # the registry ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled. What was good when it last ran is served at once where the registry cannot be asked."""
        while True:
            started = time.monotonic()
            self._wake.clear()  # first: what wakes it while it looks is looked at again
            await self.poll()
            try:
                await asyncio.wait_for(self._wake.wait(), max(0.0, self._poll_s - (time.monotonic() - started)))
            except TimeoutError:
                continue

    def wake(self) -> None:
        """Look now: something has changed."""
        self._wake.set()

    async def poll(self) -> None:
        """One look at the registry, and what follows from it; the moves themselves go on by themselves."""
        models, faults = await asyncio.to_thread(self._catalog.read_each)
        if faults:
            if self.health.fault is None:
                logger.error("registry_lost fault=%s", "; ".join(faults.values()))
            self.health.fault = "; ".join(faults.values())
            last_known = {**self._remembered(), **self.snapshot}
            snapshot = {**{name: last_known[name] for name in faults if name in last_known}, **models}
        else:
            if self.health.fault is not None:
                logger.info("registry_back")
            self.health.fault, snapshot = None, models
        if models:
            self.health.answered_at = time.time()
        if snapshot and snapshot != self.snapshot:
            self._remember(snapshot)
        self.snapshot = snapshot
        self.health.traffic_problems = tuple(
            f"{name}: {problem}" for name, model in snapshot.items() for problem in model.traffic.problems
        )
        self._follow(snapshot)

    def _follow(self, snapshot: Snapshot) -> None:
        numbers = {(name, alias): number for name, model in snapshot.items() for alias, number in model.aliases.items()}
        for key in [key for key in self.targets if key not in numbers]:
            target = self.targets.pop(key)
            if target.moving is not None:
                target.moving.cancel()
            self._unpin(target)
            logger.info("alias_gone model=%s alias=%s", *key)
        for (model, alias), number in numbers.items():
            target = self.targets.setdefault((model, alias), Target(model, alias, number))
            if target.registered != number:
                target.registered, target.failures, target.retry_at = number, 0, 0.0
                if target.moving is not None:
                    target.moving.cancel()
                    target.moving = None
            if target.serves == number:
                target.fault = None
            elif target.moving is None and time.monotonic() >= target.retry_at:
                target.moving = asyncio.create_task(self._move(target, number))

    async def _move(self, target: Target, number: str) -> None:
        started = time.monotonic()
        try:
            resident = await self._load(target.model, number, is_move=True)
        except Exception as error:
            if not isinstance(error, FinetuneError):
                logger.exception("swap_broken model=%s alias=%s version=%s", target.model, target.alias, number)
            target.failures += 1
            target.retry_at = time.monotonic() + min(_LONGEST_RETRY_S, 2.0 ** (target.failures - 1))
            if target.fault != str(error):
                logger.error(
                    "swap_failed model=%s alias=%s version=%s fault=%s", target.model, target.alias, number, error
                )
            target.fault = str(error)
            self.health.failed_swaps += 1
        else:
            before = target.serves
            resident.pins += 1
            self._unpin(target)
            target.resident, target.fault, target.failures = resident, None, 0
            self.health.swaps += before is not None
            took_ms = 1000 * (time.monotonic() - started)
            logger.info(
                "swapped model=%s alias=%s from=%s to=%s took_ms=%.0f",
                target.model,
                target.alias,
                before,
                number,
                took_ms,
            )
            self._fleet.forget_unused_soon()
        finally:
            if target.moving is asyncio.current_task():
                target.moving = None

    def _unpin(self, target: Target) -> None:
        if target.resident is not None:
            target.resident.pins -= 1
            target.resident = None

    async def _load(self, model: str, number: str, *, is_move: bool) -> Resident:
        """One loading per version at a time, whoever asks; a move never stands behind what requests ask for."""
        key = (model, number, is_move)
        task = self._loading.get(key)
        if task is None:
            task = asyncio.create_task(self._fetch_and_admit(*key))
            self._loading[key] = task
            task.add_done_callback(lambda done: self._forget_loading(key, done))
        return await asyncio.shield(task)

    def _forget_loading(self, key: tuple[str, str, bool], done: asyncio.Task[Resident]) -> None:
        self._loading.pop(key, None)
        if not done.cancelled():
            done.exception()  # seen: who waited was told, and perhaps nobody waits any more

    async def _fetch_and_admit(self, model: str, number: str, is_move: bool) -> Resident:
        resident = self._resident(model, number)
        if resident is not None:
            return resident
        async with self._fetches[is_move]:
            version: FetchedVersion = await asyncio.to_thread(self._fetcher.fetch, model, number)
        return await self._fleet.admit(version)

    def _resident(self, model: str, number: str) -> Resident | None:
        """One that is ready to answer."""
        for resident in self._fleet.residents.values():
            version = resident.version
            if (version.model, version.number) == (model, number) and resident.is_ready:
                return resident
        return None

    # what requests ask for -------------------------------------------------------------------------------------------

    async def find(self, ref: ModelRef, user: str | None) -> tuple[Resident, str | None]:
        """Who answers, and under which alias. Raises UnknownModelError, NotReadyError."""
        if ref.version is not None:
            return await self._version(ref.name, ref.version), None
        model = self.snapshot.get(ref.name)
        if model is None:
            raise NotReadyError(f"the registry has not told about {ref.name!r} yet")
        alias = ref.alias
        if alias is None:
            alias = model.traffic.choose(ref.name, self._answering(ref.name, model.aliases), user)
        if alias is None:
            raise UnknownModelError(f"{ref.name!r} has no alias that serves; fix: set champion, or ask for a version")
        target = self.targets.get((ref.name, alias))
        if target is None:
            raise UnknownModelError(
                f"{ref.name!r} has no alias {alias!r}; it has: {', '.join(sorted(model.aliases)) or 'none'}"
            )
        if target.resident is None:
            why = target.fault or "; ".join(self._fleet.faults()) or "it is being loaded"
            raise NotReadyError(f"{ref.name}@{alias} is not ready: {why}")
        return target.resident, alias

    def _answering(self, model: str, aliases: Mapping[str, str]) -> Mapping[str, str]:
        """The aliases that a split may choose: those that can answer, as long as any can. The others show in /readyz."""
        ready = {alias for (name, alias), target in self.targets.items() if name == model and target.resident}
        return {alias: number for alias, number in aliases.items() if alias in ready} or aliases

    async def _version(self, model: str, number: str) -> Resident:
        loaded = self._resident(model, number)
        if loaded is not None and (loaded.pins or await self._is_there(loaded)):
            return loaded
        until, refusal = self._refused.get((model, number), (0.0, None))
        if refusal is not None and time.monotonic() < until:
            raise type(refusal)(str(refusal))
        try:
            resident = await asyncio.wait_for(self._load(model, number, is_move=False), _LONGEST_LOAD_S)
            self._fleet.forget_unused_soon(but=resident)
            return resident
        except TimeoutError as error:
            raise NotReadyError(f"{model}/{number} is being loaded; fix: ask again in a while") from error
        except StoreError as error:  # not what its digest says, or no room: asking at once would download it again
            raise self._refuse(model, number, NotReadyError(f"{model}/{number} cannot be had: {error}")) from error
        except EngineError as error:
            raise NotReadyError(f"{model}/{number} cannot be had now: {error}") from error
        except ServingError as error:
            raise self._refuse(model, number, UnknownModelError(str(error))) from error
        except FinetuneError as error:
            raise NotReadyError(f"{model}/{number} cannot be had now: {error}") from error

    async def _is_there(self, resident: Resident) -> bool:
        """Whether the registry still has a version that no alias vouches for; asked once a minute. One that is gone is unloaded."""
        version = resident.version
        try:
            await asyncio.to_thread(self._fetcher.confirm, version.model, version.number)
        except TrackingError:
            return True  # nobody can be asked: what was good before still is
        except ServingError:
            await self._fleet.withdraw(resident)
            return False
        return True

    def _refuse(
        self, model: str, number: str, refusal: UnknownModelError | NotReadyError
    ) -> UnknownModelError | NotReadyError:
        """Remembers it for a while; returns it."""
        self._refused[model, number] = (time.monotonic() + _REFUSED_S, refusal)
        while len(self._refused) > _MOST_REFUSED:
            self._refused.popitem(last=False)
        return refusal

    def served_models(self) -> frozenset[str]:
        return frozenset(self._catalog.models)

    # memory ----------------------------------------------------------------------------------------------------------

    def _remember(self, snapshot: Snapshot) -> None:
        """For a start while the registry is away."""
        content = {
            name: {"aliases": dict(model.aliases), "traffic": _tags(model.traffic)} for name, model in snapshot.items()
        }
        draft = self._memory.with_name(f".{self._memory.name}.{os.getpid()}")
        try:
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(content), encoding="utf-8")
            os.replace(draft, self._memory)
        except OSError as error:
            logger.warning("aliases_not_remembered fault=%s", error)

    def _remembered(self) -> Snapshot:
        try:
            content: Mapping[str, dict[str, dict[str, str]]] = json.loads(self._memory.read_text(encoding="utf-8"))
            return {
                name: CatalogModel(dict(model["aliases"]), read_traffic(dict(model["traffic"]), dict(model["aliases"])))
                for name, model in content.items()
                if name in self._catalog.models
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("aliases_forgotten file=%s fault=%s", self._memory, error)
            return {}


def _tags(traffic: Traffic) -> dict[str, str]:
    weights_by_tag = {SPLIT_TAG: traffic.split, SHADOW_TAG: traffic.shadow}
    return {
        tag: ", ".join(f"{alias}={weight!r}" for alias, weight in weights.items())
        for tag, weights in weights_by_tag.items()
    }
