"""What the endpoints serve, and who meets by default."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp

from gradio_app.client import Endpoint, new_http
from gradio_app.session import Contender, SessionError
from mlflow_finetune_plugin.votes.vote import clean

OURS = "mlflow-finetune"
"""``owned_by`` of the models that our router serves."""
_TIMEOUT = aiohttp.ClientTimeout(total=10)
_MOST = 5000
_MOST_BYTES = 4_000_000


@dataclass(frozen=True)
class Served:
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


async def look(http: aiohttp.ClientSession, endpoints: Sequence[Endpoint]) -> Served:
    """Asks all endpoints at once; one that is away is a fault beside what the others serve."""
    found = await asyncio.gather(*(_models(http, endpoint) for endpoint in endpoints))
    contenders: list[Contender] = []
    registered: dict[str, None] = {}
    for place, (endpoint, (models, _)) in enumerate(zip(endpoints, found, strict=True)):
        for model, owner in models:
            name = model if place == 0 else f"{model} [{endpoint.name}]"
            contenders.append(Contender(model, endpoint, name))
            if owner == OURS and "@" in model:
                registered[model.rpartition("@")[0]] = None
            elif owner == OURS and "/" in model and model.rpartition("/")[2].isdigit():
                registered[model.rpartition("/")[0]] = None
    return Served(tuple(contenders), tuple(registered), tuple(fault for _, fault in found if fault))


def default_sides(served: Served, model: str | None) -> tuple[Contender, ...]:
    """Challenger against champion; without a champion against the base; of other endpoints the first two.

    Raises SessionError where fewer than two can be asked.
    """
    names = {contender.name: contender for contender in served.contenders}
    wanted = model or (served.registered[0] if served.registered else None)
    if wanted is not None:
        order = [f"{wanted}@challenger", f"{wanted}@champion", "base", *_versions(names, wanted)]
        sides = [names[name] for name in order if name in names]
        if {side.name for side in sides[:2]} == {order[0], order[1]} or len(sides) >= 2:
            return tuple(sides[:2])
    if len(served.contenders) >= 2:
        return served.contenders[:2]
    why = " ".join(served.faults) or "Its endpoint serves fewer than two models."
    raise SessionError(f"There are no two models to compare yet. {why}")


def _versions(names: dict[str, Contender], model: str) -> list[str]:
    mine = [name for name in names if name.startswith(f"{model}/") and name.rpartition("/")[2].isdigit()]
    return sorted(mine, key=lambda name: -int(name.rpartition("/")[2]))


async def registered_model(endpoints: Sequence[Endpoint]) -> str | None:
    """The one that the endpoints serve now; None where there is none, or more than one."""
    async with new_http() as http:
        found = (await look(http, endpoints)).registered
    return found[0] if len(found) == 1 else None


async def _models(http: aiohttp.ClientSession, endpoint: Endpoint) -> tuple[list[tuple[str, str]], str | None]:
    try:
        async with http.get(
            f"{endpoint.url}/models", headers=endpoint.headers, timeout=_TIMEOUT, allow_redirects=False
        ) as response:
            if response.status != 200:
                return [], f"{endpoint.name} refuses to list its models (HTTP {response.status})."
            told = json.loads(await _read(response.content))
            rows = told["data"][:_MOST]
            return [(clean(str(row["id"])), str(row.get("owned_by", ""))) for row in rows], None
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return [], f"{endpoint.name} cannot be reached ({type(error).__name__})."
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [], f"{endpoint.name} answers, but not as OpenAI's API lists models."


async def _read(stream: aiohttp.StreamReader) -> bytes:
    """All of it, up to what a list of models can be. Raises ValueError for more."""
    parts, size = [], 0
    async for part in stream.iter_any():
        parts.append(part)
        size += len(part)
        if size > _MOST_BYTES:
            raise ValueError("too long for a list of models")
    return b"".join(parts)
