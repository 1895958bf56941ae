"""What the endpoints serve, and who meets by default."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from gradio_app.chat.client import Endpoint, new_http
from gradio_app.chat.session import Contender, SessionError
from mlflow_finetune_plugin.store.names import BASE, CHALLENGER, CHAMPION
from mlflow_finetune_plugin.votes.journal.vote import clean

OURS = "mlflow-finetune"
"""``owned_by`` of the models that our router serves."""
_TIMEOUT = aiohttp.ClientTimeout(total=10)
_MOST = 5000
_Listed = tuple[str, str, str | None, str | None]
"""Name, owner, root, parent."""
_MOST_BYTES = 4_000_000


@dataclass(frozen=True)
class ServedModels:
    """Everything that can be asked now; ``faults``: of endpoints that could not say, in words."""

    contenders: tuple[Contender, ...]
    registered: tuple[str, ...]
    """Registered models behind routers of ours."""
    faults: tuple[str, ...]

    def find(self, name: str) -> Contender:
        """By the name that people see, or the model's own. Raises SessionError."""
        for contender in self.contenders:
            if name in (contender.name, contender.model):
                return contender
        some = ", ".join(contender.name for contender in self.contenders[:12]) or "none"
        raise SessionError(f"No model {name!r} is served now. Served: {some}.")


async def discover(http: aiohttp.ClientSession, endpoints: Sequence[Endpoint]) -> ServedModels:
    """Asks all endpoints at once; one that is away is a fault beside what the others serve."""
    found = await asyncio.gather(*(_models(http, endpoint) for endpoint in endpoints))
    contenders: list[Contender] = []
    registered: dict[str, None] = {}
    for place, (endpoint, (models, _)) in enumerate(zip(endpoints, found, strict=True)):
        for model, owner, root, parent in models:
            name = model if place == 0 else f"{model} [{endpoint.name}]"
            contenders.append(Contender(model, endpoint, name, root, parent))
            if owner == OURS and "@" in model:
                registered[model.rpartition("@")[0]] = None
            elif owner == OURS and "/" in model and model.rpartition("/")[2].isdigit():
                registered[model.rpartition("/")[0]] = None
    return ServedModels(tuple(contenders), tuple(registered), tuple(fault for _, fault in found if fault))


def default_sides(served: ServedModels, model: str | None) -> tuple[Contender, ...]:
    """Challenger against champion; where they are one version, or there is no champion, against its base.

    Of other endpoints the first two.

    Raises SessionError where fewer than two can be asked.
    """
    names = {contender.name: contender for contender in served.contenders}
    wanted = model or (served.registered[0] if served.registered else None)
    if wanted is not None:
        versions = [f"{wanted}@{CHALLENGER}", f"{wanted}@{CHAMPION}"]
        parent = next((names[name].parent for name in versions if name in names), None)
        order = [*versions, *([parent] if parent is not None else []), BASE, *_versions(names, wanted)]
        different: dict[str, Contender] = {}
        for name in (one for one in order if one in names):
            different.setdefault(names[name].root or name, names[name])
        sides = list(different.values())
        if len(sides) >= 2:
            return sides[0], sides[1]
    if len(served.contenders) >= 2:
        return served.contenders[:2]
    why = " ".join(served.faults) or "Its endpoint serves fewer than two models."
    raise SessionError(f"There are no two models to compare yet. {why}")


def _versions(names: dict[str, Contender], model: str) -> list[str]:
    mine = [name for name in names if name.startswith(f"{model}/") and name.rpartition("/")[2].isdigit()]
    return sorted(mine, key=lambda name: -int(name.rpartition("/")[2]))


async def discover_once(endpoints: Sequence[Endpoint]) -> ServedModels:
    """By whoever has no connection of their own yet."""
    async with new_http() as http:
        return await discover(http, endpoints)


async def _models(http: aiohttp.ClientSession, endpoint: Endpoint) -> tuple[list[_Listed], str | None]:
    try:
        async with http.get(
            f"{endpoint.url}/models", headers=endpoint.headers, timeout=_TIMEOUT, allow_redirects=False
        ) as response:
            if response.status != 200:
                return [], f"{endpoint.name} refuses to list its models (HTTP {response.status})."
            told = json.loads(await _read(response.content))
            rows = told["data"][:_MOST]
            return [_listed(row) for row in rows], None
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return [], f"{endpoint.name} cannot be reached ({type(error).__name__})."
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [], f"{endpoint.name} answers, but not as OpenAI's API lists models."


def _listed(row: dict[str, Any]) -> _Listed:
    root, parent = (None if row.get(key) is None else clean(str(row[key])) for key in ("root", "parent"))
    return clean(str(row["id"])), str(row.get("owned_by", "")), root, parent


async def _read(stream: aiohttp.StreamReader) -> bytes:
    """All of it, up to what a list of models can be. Raises ValueError for more."""
    parts, size = [], 0
    async for part in stream.iter_any():
        parts.append(part)
        size += len(part)
        if size > _MOST_BYTES:
            raise ValueError("too long for a list of models")
    return b"".join(parts)
