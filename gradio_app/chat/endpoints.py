"""List the models that the endpoints serve, and choose the two that are compared by default."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from gradio_app.chat.client import Endpoint, new_http
from gradio_app.chat.session import Contender, SessionError
from mlflow_finetune_plugin.store.names import BASE, CHALLENGER, CHAMPION
from mlflow_finetune_plugin.votes.journal.vote import clean

OURS = "mlflow-finetune"
"""The ``owned_by`` of models that a router of this project serves."""
_TIMEOUT = aiohttp.ClientTimeout(total=10)
_MOST = 5000
_Listed = tuple[str, str, str | None, str | None, bool]
"""Name, owner, root, parent, and whether it reads pictures."""
_MOST_BYTES = 4_000_000


@dataclass(frozen=True)
class ServedModels:
    """Every model that answers now. ``faults`` holds a sentence for each endpoint that could not list its models."""

    contenders: tuple[Contender, ...]
    registered: tuple[str, ...]
    """Registered models that routers of this project serve."""
    faults: tuple[str, ...]

    def version(self, name: str, model: str) -> str | None:
        """Return the version of the registered ``model`` that answers as ``name``, ``base`` for a base; None for anything else."""
        contender = next((contender for contender in self.contenders if contender.name == name), None)
        if contender is None:
            return None
        if contender.root is not None and contender.root.startswith(f"{model}/"):
            return contender.root.removeprefix(f"{model}/")
        bases = {other.parent for other in self.contenders}
        return BASE if contender.model == BASE or contender.model in bases else None

    def with_version(self, model: str, number: str) -> ServedModels:
        """Return the models with one more version of a registered model, which its router loads when it is asked for it.

        A router lists the versions with an alias, and those that were asked for. Nothing changes where no router serves the model.
        """
        name = f"{model}/{number}"
        siblings = [one for one in self.contenders if (one.root or "").startswith(f"{model}/")]
        if not siblings or any(one.model == name for one in self.contenders):
            return self
        sibling = siblings[0]
        displayed = f"{name} [{sibling.endpoint.name}]" if sibling.name != sibling.model else name
        further = Contender(name, sibling.endpoint, displayed, name, sibling.parent, sibling.sees)
        return replace(self, contenders=(*self.contenders, further))

    def find(self, name: str) -> Contender:
        """Return the contender of that displayed name or model name. Raises SessionError."""
        for contender in self.contenders:
            if name in (contender.name, contender.model):
                return contender
        names = ", ".join(contender.name for contender in self.contenders[:12]) or "none"
        raise SessionError(f"No model {name!r} is served now. Served: {names}.")


async def discover(http: aiohttp.ClientSession, endpoints: Sequence[Endpoint]) -> ServedModels:
    """List the models of all endpoints at once. An endpoint that does not answer becomes a fault."""
    listings = await asyncio.gather(*(_models(http, endpoint) for endpoint in endpoints))
    contenders: list[Contender] = []
    registered: dict[str, None] = {}
    for number, (endpoint, (models, _)) in enumerate(zip(endpoints, listings, strict=True)):
        for model, owner, root, parent, sees in models:
            name = model if number == 0 else f"{model} [{endpoint.name}]"
            contenders.append(Contender(model, endpoint, name, root, parent, sees))
            if owner == OURS and "@" in model:
                registered[model.rpartition("@")[0]] = None
            elif owner == OURS and "/" in model and model.rpartition("/")[2].isdigit():
                registered[model.rpartition("/")[0]] = None
    return ServedModels(tuple(contenders), tuple(registered), tuple(fault for _, fault in listings if fault))


def default_sides(served: ServedModels, model: str | None) -> tuple[Contender, ...]:
    """Return the challenger and the champion, or a version and its base where there are no two different versions.

    Of endpoints without a registered model the first two models are compared. Raises SessionError where fewer than two
    models are served.
    """
    names = {contender.name: contender for contender in served.contenders}
    registered = model or (served.registered[0] if served.registered else None)
    if registered is not None:
        versions = [f"{registered}@{CHALLENGER}", f"{registered}@{CHAMPION}"]
        parent = next((names[name].parent for name in versions if name in names), None)
        order = [*versions, *([parent] if parent is not None else []), BASE, *_versions(names, registered)]
        different: dict[str, Contender] = {}
        for name in filter(names.__contains__, order):
            different.setdefault(names[name].root or name, names[name])
        sides = list(different.values())
        if len(sides) >= 2:
            return sides[0], sides[1]
    if len(served.contenders) >= 2:
        return served.contenders[:2]
    why = " ".join(served.faults) or "Its endpoint serves fewer than two models."
    raise SessionError(f"There are no two models to compare yet. {why}")


def _versions(names: dict[str, Contender], model: str) -> list[str]:
    versions = [name for name in names if name.startswith(f"{model}/") and name.rpartition("/")[2].isdigit()]
    return sorted(versions, key=lambda name: -int(name.rpartition("/")[2]))


async def discover_once(endpoints: Sequence[Endpoint]) -> ServedModels:
    """List the models without an HTTP session of the caller."""
    async with new_http() as http:
        return await discover(http, endpoints)


async def _models(http: aiohttp.ClientSession, endpoint: Endpoint) -> tuple[list[_Listed], str | None]:
    try:
        async with http.get(
            f"{endpoint.url}/models", headers=endpoint.headers, timeout=_TIMEOUT, allow_redirects=False
        ) as response:
            if response.status != 200:
                return [], f"{endpoint.name} refuses to list its models (HTTP {response.status})."
            rows = json.loads(await _read(response.content))["data"][:_MOST]
            return [_listed(row) for row in rows], None
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return [], f"{endpoint.name} cannot be reached ({type(error).__name__})."
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [], f"{endpoint.name} answers, but not with a list of models as in OpenAI's API."


def _listed(row: dict[str, Any]) -> _Listed:
    root, parent = (None if row.get(key) is None else clean(str(row[key])) for key in ("root", "parent"))
    return clean(str(row["id"])), str(row.get("owned_by", "")), root, parent, row.get("sees") is True


async def _read(stream: aiohttp.StreamReader) -> bytes:
    """Return the whole body. Raises ValueError for one that is too long for a list of models."""
    parts, size = [], 0
    async for part in stream.iter_any():
        parts.append(part)
        size += len(part)
        if size > _MOST_BYTES:
            raise ValueError("too long for a list of models")
    return b"".join(parts)
