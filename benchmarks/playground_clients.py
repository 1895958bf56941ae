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

ASK, STREAM = "_ask", "_stream_two"
SETTINGS = ["", 0.0, 1.0, 512, None]
"""System prompt, temperature, top p, max tokens, seed: as the page sends them."""


@dataclass
class Turn:
    """Seconds since the click. ``updates`` counts what the page was told; ``longest_gap_s`` between two of these."""

    first_s: float = 0.0
    took_s: float = 0.0
    updates: int = 0
    longest_gap_s: float = 0.0
    bytes: int = 0
    raw: list[str] = field(default_factory=list)


class Person:
    """One page."""

    def __init__(self, http: aiohttp.ClientSession, url: str, config: dict[str, Any]) -> None:
        self._http, self._url = http, url
        self.key = secrets.token_hex(6)
        self._api = url + str(config.get("api_prefix", ""))
        self._functions = {one["api_name"]: one["id"] for one in config["dependencies"]}
        self._headers = {"Origin": url}

    async def ask(self, prompt: str, *, keep: bool = False) -> Turn:
        """Sends a prompt as the page does and waits until all is said."""
        start = time.monotonic()
        await self._call(ASK, [prompt, *SETTINGS], keep=keep)
        begun = time.monotonic() - start
        turn = await self._call(STREAM, [], keep=keep)
        await self._call("_stream_more", [], keep=keep)
        await self._call("_settle", [], keep=keep)
        turn.first_s, turn.took_s = begun + turn.first_s, time.monotonic() - start
        return turn

    async def call(self, name: str, data: list[Any], *, keep: bool = True) -> Turn:
        return await self._call(name, data, keep=keep)

    async def _call(self, name: str, data: list[Any], *, keep: bool) -> Turn:
        body = {"data": data, "fn_index": self._functions[name], "session_hash": self.key, "trigger_id": None}
        turn, start = Turn(), time.monotonic()
        last = start
        async with self._http.post(f"{self._api}/queue/join", json=body, headers=self._headers) as response:
            response.raise_for_status()
            await response.read()
        async for message, size in self._events():
            now = time.monotonic()
            if message["msg"] in ("process_generating", "process_completed"):
                turn.first_s = turn.first_s or now - start
                turn.updates += 1
                turn.longest_gap_s = max(turn.longest_gap_s, now - last)
                last = now
            turn.bytes += size
            if keep:
                turn.raw.append(json.dumps(message))
            if message["msg"] == "process_completed":
                if not message["success"]:
                    raise RuntimeError(str(message["output"])[:300])
                turn.took_s = now - start
                return turn
        raise RuntimeError("the queue's stream ended early")

    async def _events(self) -> AsyncIterator[tuple[dict[str, Any], int]]:
        async with self._http.get(f"{self._api}/queue/data", params={"session_hash": self.key}) as response:
            response.raise_for_status()
            unfinished = b""
            async for read in response.content.iter_any():
                *events, unfinished = (unfinished + read).split(b"\n\n")
                for event in events:
                    if event.startswith(b"data:"):
                        yield json.loads(event[5:]), len(event)


async def config_of(http: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    """The page's own."""
    async with http.get(url + "/config") as response:
        return dict(await response.json())


async def together(people: list[Person], prompt: str) -> list[Turn]:
    """All ask at once."""
    return list(await asyncio.gather(*(person.ask(prompt) for person in people)))
