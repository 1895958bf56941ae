"""People at the playground, as programs: each its own session, speaking Gradio's queue over HTTP as the page does."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from gradio_client.utils import apply_diff

SETTINGS = ["", 0.0, 1.0, "512", ""]
"""System prompt, temperature, top p, max tokens, seed: as the page sends them."""
_NOTHING_TO_SAY = ([], "", None)


@dataclass
class Turn:
    """Seconds since the click. ``updates`` counts what the page was told; ``longest_gap_s`` between two of these.

    ``changed_s``: when each output changed last; ``shown``: what it is then, for a person who listens.
    """

    first_s: float = 0.0
    took_s: float = 0.0
    updates: int = 0
    longest_gap_s: float = 0.0
    bytes: int = 0
    changed_s: dict[int, float] = field(default_factory=dict)
    shown: list[Any] = field(default_factory=list)


class Person:
    """One page. ``listens``: everything received is kept in ``heard``, as bytes and as what it makes of the page."""

    def __init__(self, http: aiohttp.ClientSession, url: str, config: dict[str, Any], *, listens: bool = False) -> None:
        self._http, self._url = http, url
        self.key = secrets.token_hex(6)
        self.listens = listens
        self.heard: list[str] = []
        self._api = url + str(config.get("api_prefix", ""))
        self._functions = {dependency["api_name"]: dependency["id"] for dependency in config["dependencies"]}
        self._headers = {"Origin": url}

    async def open(self) -> Turn:
        """What the page does first."""
        return await self.call("_load")

    async def ask(self, prompt: str) -> Turn:
        """Sends a prompt as the page does and waits until all is said; ``shown`` is what the streams made of the chats."""
        start = time.monotonic()
        await self.call("_ask", prompt, *SETTINGS)
        begun = time.monotonic() - start
        turn = await self.call("_stream")
        settled = await self.call("_settle")
        turn.first_s, turn.took_s = begun + turn.first_s, time.monotonic() - start
        turn.changed_s = {side: begun + at for side, at in turn.changed_s.items()}
        turn.shown = settled.shown
        return turn

    async def meet(self, *names: str) -> Turn:
        """Chooses who meets; names that were not offered are refused."""
        await self.call("_show")
        return await self.call("_compare", *names, *[""] * (4 - len(names)), *[""] * 16)

    async def vote(self, choice: str) -> Turn:
        return await self.call(self._voting(choice), [], "")

    async def show_names(self) -> Turn:
        return await self.call("_show_names")

    def _voting(self, choice: str) -> str:
        """Its buttons stand on the page from left to right; their handlers are one function made four times."""
        endpoints = ["cast_vote", "cast_vote_1", "cast_vote_2", "cast_vote_3"]
        return dict(zip(("left", "tie", "both_bad", "right"), endpoints, strict=True))[choice]

    async def call(self, name: str, *data: Any) -> Turn:
        body = {"data": data, "fn_index": self._functions[name], "session_hash": self.key, "trigger_id": None}
        turn, start = Turn(), time.monotonic()
        last = start
        async with self._http.post(f"{self._api}/queue/join", json=body, headers=self._headers) as response:
            response.raise_for_status()
            joined = await response.text()
            if self.listens:
                self.heard.append(joined)
        async for text in self._events():
            message = json.loads(text)
            now = time.monotonic()
            turn.bytes += len(text)
            if self.listens:
                self.heard.append(text.decode())
            if message["msg"] not in ("process_generating", "process_completed"):
                continue
            turn.first_s = turn.first_s or now - start
            turn.updates += 1
            turn.longest_gap_s, last = max(turn.longest_gap_s, now - last), now
            self._take(turn, message, now - start)
            if message["msg"] == "process_completed":
                if not message["success"]:
                    raise RuntimeError(str(message["output"])[:300])
                turn.took_s = now - start
                return turn
        raise RuntimeError("the queue's stream ended early")

    def _take(self, turn: Turn, message: dict[str, Any], at: float) -> None:
        """Later messages of a generator say what is different; the last one repeats it all, or says nothing."""
        values = message["output"].get("data") or []
        is_more = message["msg"] == "process_generating" and turn.updates > 1
        if message["msg"] == "process_generating":
            turn.changed_s |= {side: at for side, value in enumerate(values) if value not in _NOTHING_TO_SAY}
        if self.listens:
            if is_more:
                values = [apply_diff(old, change) for old, change in zip(turn.shown, values, strict=True)]
            self.heard.append(json.dumps(values, ensure_ascii=False))
        if values and (self.listens or not is_more):
            turn.shown = values

    async def _events(self) -> AsyncIterator[bytes]:
        async with self._http.get(f"{self._api}/queue/data", params={"session_hash": self.key}) as response:
            response.raise_for_status()
            unfinished = b""
            async for read in response.content.iter_any():
                *events, unfinished = (unfinished + read).split(b"\n\n")
                for event in events:
                    if event.startswith(b"data:"):
                        yield event[5:]


def new_http() -> aiohttp.ClientSession:
    """As many connections as there are people."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=600))


async def config_of(http: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    """The page's own."""
    async with http.get(url + "/config") as response:
        return dict(await response.json())


async def opened(http: aiohttp.ClientSession, url: str, count: int) -> list[Person]:
    """So many pages, loaded before anything is asked, as people's are."""
    config = await config_of(http, url)
    people = [Person(http, url, config) for _ in range(count)]
    await asyncio.gather(*(person.open() for person in people))
    return people


async def together(people: list[Person], prompt: str) -> list[Turn]:
    """All ask at once."""
    return list(await asyncio.gather(*(person.ask(prompt) for person in people)))
