"""Limit how many engines run: one that no alias and no answer needs ends before another one starts."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Protocol, TypeVar

from mlflow_finetune_plugin.errors import EngineError
from mlflow_finetune_plugin.serving.engines.engine import EngineProcess

logger = logging.getLogger(__name__)


class Use(Protocol):
    """A version that an engine serves, as ``fleet.Resident`` describes it."""

    engine: EngineProcess
    pins: int
    in_flight: int
    last_used: int


Key = TypeVar("Key")
Version = TypeVar("Version", bound=Use)


async def make_room(
    engines: MutableMapping[Key, EngineProcess],
    residents: Mapping[str, Version],
    most: int,
    drop: Callable[[Version], Awaitable[None]],
) -> None:
    """End idle engines, the least recently used first, until another one may start.

    Engines that aliases need do not count against each other: with all of them in use, one more may run.

    Args:
        engines: The engines; those that end are removed.
        residents: The loaded versions.
        most: How many engines may run at once.
        drop: Unloads a version, unless a request needs it meanwhile.

    Raises:
        EngineError: Too many engines are answering requests.
    """
    while len(engines) >= most:
        key = _least_recently_used(engines, residents)
        if key is None:
            break
        engine = engines.pop(key)
        for resident in [resident for resident in residents.values() if resident.engine is engine]:
            await drop(resident)
        if any(resident.engine is engine for resident in residents.values()):  # a request needed it meanwhile
            engines[key] = engine
            continue
        logger.info("engine_ended kind=%s base=%s reason=idle", engine.spec.kind, engine.spec.base_name)
        await engine.stop()
    needed = {id(resident.engine) for resident in residents.values() if resident.pins}
    if len(engines) >= max(most, len(needed) + 1):
        raise EngineError(f"all {len(engines)} engines are answering requests; fix: try again later, or --max-engines")


def _least_recently_used(engines: Mapping[Key, EngineProcess], residents: Mapping[str, Version]) -> Key | None:
    """Return the idle engine whose versions were used longest ago; None if none is idle."""
    last_used: dict[Key, int] = {}
    for key, engine in engines.items():
        uses = [resident for resident in residents.values() if resident.engine is engine]
        if not engine.running and not any(use.pins or use.in_flight for use in uses):
            last_used[key] = max((use.last_used for use in uses), default=0)
    return min(last_used, key=lambda key: last_used[key], default=None)
