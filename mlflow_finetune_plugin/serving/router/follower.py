"""Follow the registry's aliases. Each alias refers to a loaded and certified version, and moves only to another such version.

When an alias moves, the follower fetches, verifies, loads and certifies the new version, and then switches the alias in one
step. Answers that began with the old version end with it. If anything fails, the old version stays.
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

from mlflow_finetune_plugin.errors import (
    EngineChoiceError,
    EngineError,
    FinetuneError,
    MissingExtraError,
    ServingError,
    StoreError,
    TrackingError,
)
from mlflow_finetune_plugin.serving.daemon_threads import in_daemon_thread
from mlflow_finetune_plugin.serving.engines.fleet import Fleet, Resident
from mlflow_finetune_plugin.serving.versions.catalog import Catalog, CatalogModel, Snapshot
from mlflow_finetune_plugin.serving.versions.fetching import FetchedVersion, Fetcher
from mlflow_finetune_plugin.serving.versions.traffic import Traffic, read_traffic
from mlflow_finetune_plugin.store.model_ref import ModelRef
from mlflow_finetune_plugin.store.names import CHAMPION, PREVIOUS, SHADOW_TAG, SPLIT_TAG

logger = logging.getLogger(__name__)

_LONGEST_RETRY_S = 60.0
_REFUSED_S = 10.0
_LONGEST_LOAD_S = 60.0
_MOST_REFUSED = 1000
_FETCHES = 2


class UnknownModelError(ServingError):
    """No served model has that name."""


class NotReadyError(ServingError):
    """The name is valid, but its version cannot answer now."""


@dataclass(eq=False)
class Target:
    """An alias.

    Attributes:
        registered: Its version in the registry.
        resident: The version that answers.
        is_hopeless: Whether no other attempt can load the registered version, because its engine cannot serve it.
    """

    model: str
    alias: str
    registered: str
    resident: Resident | None = None
    fault: str | None = None
    failures: int = 0
    is_hopeless: bool = False
    retry_at: float = 0.0
    moving: asyncio.Task[None] | None = None

    @property
    def serves(self) -> str | None:
        return self.resident.version.number if self.resident is not None else None


@dataclass
class Health:
    """When the registry last answered (epoch seconds), and its faults since then."""

    answered_at: float | None = None
    fault: str | None = None
    traffic_problems: tuple[str, ...] = ()
    swaps: int = 0
    failed_swaps: int = 0


class Follower:
    """Follows the aliases of a catalog's models.

    Args:
        catalog: Reads the registry.
        fetcher: Fetches versions.
        fleet: Loads and certifies versions.
        folder: Where the aliases are remembered for a start without the registry.
        poll_s: Seconds between two polls of the registry; a webhook wakes the follower earlier.
    """

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
        self._has_served = False

    # the registry ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Poll until cancelled. If the registry does not answer at the start, the last known aliases are served.

        Raises:
            EngineChoiceError: Nothing is served, and the engine can serve the version of no alias.
        """
        while True:
            started = time.monotonic()
            self._wake.clear()  # first, so that a change during the poll leads to another poll
            await self.poll()
            try:
                await asyncio.wait_for(self._wake.wait(), max(0.0, self._poll_s - (time.monotonic() - started)))
            except TimeoutError:
                continue

    def wake(self) -> None:
        """Poll now, because something has changed."""
        self._wake.set()

    async def poll(self) -> None:
        """Read the registry once, and start the moves that follow; they run in the background."""
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

    def _check_hope(self) -> None:
        """Raise EngineChoiceError if nothing was ever served and no alias has a version that can be."""
        targets = list(self.targets.values())
        if targets and not self._has_served and all(target.is_hopeless for target in targets):
            names = {f"{target.model}/{target.registered}: ": str(target.fault) for target in targets}
            faults = (name + fault.removeprefix(name) for name, fault in names.items())
            raise EngineChoiceError("nothing can be served: " + "; ".join(faults))

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
                target.registered, target.failures, target.retry_at, target.is_hopeless = number, 0, 0.0, False
                if target.moving is not None:
                    target.moving.cancel()
                    target.moving = None
            if target.resident is not None and target.resident.refusal is not None:  # fetched again
                target.fault = target.resident.refusal
                self._unpin(target)
            if target.serves == number:
                target.fault = None
            elif target.moving is None and time.monotonic() >= target.retry_at:
                target.moving = asyncio.create_task(self._move(target, number))
        self._check_hope()

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
            target.fault, target.is_hopeless = str(error), isinstance(error, EngineChoiceError | MissingExtraError)
            self.health.failed_swaps += 1
        else:
            before = target.serves
            resident.pins += 1
            self._unpin(target)
            target.resident, target.fault, target.failures = resident, None, 0
            self._has_served = True
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
        """Load a version once, however many callers wait for it. A move never waits behind loads for requests."""
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
            done.exception()  # mark it as retrieved: the callers that still waited have raised it

    async def _fetch_and_admit(self, model: str, number: str, is_move: bool) -> Resident:
        resident = self._resident(model, number)
        if resident is not None:
            return resident
        await self._fleet.withdraw_refused(model, number)
        async with self._fetches[is_move]:
            version: FetchedVersion = await in_daemon_thread(self._fetcher.fetch, model, number)
        return await self._fleet.admit(version)

    def _resident(self, model: str, number: str) -> Resident | None:
        """Return the loaded version if it is ready to answer."""
        for resident in self._fleet.residents.values():
            version = resident.version
            if (version.model, version.number) == (model, number) and resident.is_ready:
                return resident
        return None

    # requests --------------------------------------------------------------------------------------------------------

    async def find(self, ref: ModelRef, user: str | None) -> tuple[Resident, str | None]:
        """Return the version that answers, and the alias that led to it.

        Args:
            ref: The model of the request.
            user: The request's ``user``, who gets the same alias each time; None draws one.

        Raises:
            UnknownModelError: There is no such alias or version.
            NotReadyError: The version cannot answer yet.
        """
        if ref.version is not None:
            return await self._version(ref.name, ref.version), None
        model = self.snapshot.get(ref.name)
        if model is None:
            raise NotReadyError(f"{ref.name!r} has not been read from the registry yet; fix: try again later")
        alias = ref.alias
        if alias is None:
            answering = self._answering(ref.name, model.aliases) if model.traffic.split else model.aliases
            alias = model.traffic.choose(ref.name, answering, user)
        if alias is None:
            aliases = ", ".join(f"{ref.name}@{other}" for other in sorted(model.aliases)) or f"{ref.name}/NUMBER"
            raise UnknownModelError(
                f"{ref.name!r} has no champion yet; fix: mlflow-finetune promote {ref.name}, or request {aliases}"
            )
        target = self.targets.get((ref.name, alias))
        if target is None:
            raise UnknownModelError(
                f"{ref.name!r} has no alias {alias!r}; it has: {', '.join(sorted(model.aliases)) or 'none'}"
            )
        if target.resident is None:
            why = target.fault or "; ".join(self._fleet.faults()) or "it is loading"
            raise NotReadyError(f"{ref.name}@{alias} is not ready: {why}")
        return target.resident, alias

    def _answering(self, model: str, aliases: Mapping[str, str]) -> Mapping[str, str]:
        """Return the aliases that a split may choose: those that can answer, or all if none can. /readyz shows the others."""
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
            raise NotReadyError(f"{model}/{number} is loading; fix: try again later") from error
        except StoreError as error:  # remembered, because each new request would download the version again
            raise self._refuse(model, number, NotReadyError(f"{model}/{number} cannot be fetched: {error}")) from error
        except EngineError as error:
            raise NotReadyError(f"{model}/{number} cannot be loaded now: {error}") from error
        except ServingError as error:
            raise self._refuse(model, number, UnknownModelError(str(error))) from error
        except FinetuneError as error:
            raise NotReadyError(f"{model}/{number} cannot be fetched now: {error}") from error

    async def _is_there(self, resident: Resident) -> bool:
        """Return whether the registry still has a version without an alias, and unload it if not. It is checked once a minute."""
        version = resident.version
        try:
            await asyncio.to_thread(self._fetcher.confirm, version.model, version.number)
        except TrackingError:
            return True  # the registry does not answer, so the last known state holds
        except ServingError:
            await self._fleet.withdraw(resident)
            return False
        return True

    def _refuse(
        self, model: str, number: str, refusal: UnknownModelError | NotReadyError
    ) -> UnknownModelError | NotReadyError:
        """Remember a refusal for a while, and return it."""
        self._refused[model, number] = (time.monotonic() + _REFUSED_S, refusal)
        while len(self._refused) > _MOST_REFUSED:
            self._refused.popitem(last=False)
        return refusal

    def version_before(self, model: str, number: str) -> Resident | None:
        """Return the version that a rollback or the end of a canary would restore; None unless it is ready.

        For the champion that is ``previous``, and for other versions the champion.
        """
        champion = self.targets.get((model, CHAMPION))
        is_champion = champion is not None and champion.serves == number
        target = self.targets.get((model, PREVIOUS)) if is_champion else champion
        resident = target.resident if target is not None else None
        is_usable = resident is not None and resident.is_ready and resident.version.number != number
        return resident if is_usable else None

    def served_models(self) -> frozenset[str]:
        return frozenset(self._catalog.models)

    # memory ----------------------------------------------------------------------------------------------------------

    def _remember(self, snapshot: Snapshot) -> None:
        """Store the aliases for a start while the registry does not answer."""
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
