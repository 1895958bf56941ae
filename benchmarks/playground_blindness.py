"""Blind turns with votes, and every byte that their pages receive, searched for what would say who answers."""

from __future__ import annotations

import asyncio
import random
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from playground_clients import Person, config_of
from playground_page import Measured
from streaming_endpoint import BASE_DIGEST, router_headers

TURNS_A_CONVERSATION = 2
_CHATS, _HISTORY = 4, -1
"""Of what the page is told last. The history names the sides of earlier turns, on purpose."""
_REQUEST = re.compile(r"\b[0-9a-f]{32}\b")
_PAGES = ("/", "/config", "/gradio_api/info", "/gradio_api/startup-events")


def scripts() -> dict[str, dict]:
    """Both sides name themselves, in pieces that cut their names."""
    text = "I am {name}, who else. Ask {name} again, or ({name}): and {name}"
    return {
        f"bot@{alias}": {
            "text": text.format(name=f"bot@{alias}"),
            "piece": 3,
            "rate": 400,
            "headers": router_headers(number),
        }
        for alias, number in (("champion", "1"), ("challenger", "2"))
    }


def identities(endpoint: str) -> tuple[str, ...]:
    """Model ids, aliases, versions, digests, receipts' headers, and where the endpoint is."""
    digests = [BASE_DIGEST, *(router_headers(number)["x-finetune-adapter-digest"] for number in ("1", "2"))]
    names = ["bot@", "@champion", "@challenger", "bot/1", "bot/2", "x-finetune", urlsplit(endpoint).netloc]
    return (*names, *digests, *(digest[:12] for digest in digests))


@dataclass
class Heard:
    """``leaks``: an identity, and what it stood in."""

    turns: int = 0
    bytes: int = 0
    leaks: list[tuple[str, str]] = field(default_factory=list)
    revealed: int = 0
    """Conversations in which the same search found names once they were asked for."""

    def search(self, texts: list[str], needles: tuple[str, ...]) -> None:
        for text in texts:
            self.bytes += len(text)
            for needle in needles:
                if (at := text.find(needle)) >= 0:
                    self.leaks.append((needle, text[max(0, at - 80) : at + 80]))


async def measure(http: aiohttp.ClientSession, url: str, endpoint: str, turns: int) -> list[Measured]:
    """``turns`` by twenty people at once, whose sides are the default ones of the page."""
    heard, needles = Heard(), identities(endpoint)
    config = await config_of(http, url)
    for path in _PAGES:
        async with http.get(url + path) as response:
            heard.search([await response.text()], needles)
    conversations = turns // TURNS_A_CONVERSATION
    people = [Person(http, url, config, listens=True) for _ in range(min(20, conversations))]
    shares = [len(range(number, conversations, len(people))) for number in range(len(people))]
    await asyncio.gather(*(_speak(person, share, needles, heard) for person, share in zip(people, shares, strict=True)))
    for needle, where in heard.leaks[:5]:
        print(f"leak of {needle!r}: {where!r}")
    counts = f"{len(heard.leaks)} in {heard.turns:,} turns with votes, {heard.bytes / 1e6:,.0f} MB"
    shown = f"{heard.revealed} of {conversations} conversations"
    return [
        Measured("identity strings that reach a blind page", counts, "0", not heard.leaks),
        Measured("the same search finds the names once shown", shown, "all", heard.revealed == conversations),
    ]


async def _speak(person: Person, conversations: int, needles: tuple[str, ...], heard: Heard) -> None:
    await person.open()
    dice = random.Random(person.key)
    for number in range(conversations):
        before: list[str] = []
        for turn in range(TURNS_A_CONVERSATION):
            entry = await person.ask(f"question {number} {turn} of {person.key}")
            voted = await person.vote(dice.choice(("left", "right", "tie", "both_bad")))
            heard.turns += 1
            if turn == 0:
                heard.search(person.heard, needles)
            else:
                heard.search([_of_this_turn(entry.shown), _of_this_turn(voted.shown)], needles)
            before += person.heard
            person.heard.clear()
        shown = str((await person.show_names()).shown[:_HISTORY])
        receipts = tuple(set(_REQUEST.findall(shown)) - set(needles))
        heard.search(before, receipts)
        heard.revealed += len(receipts) == 2 and "bot@champion" in shown and "bot@challenger" in shown
        person.heard.clear()
        await person.call("_restart", True, "turn")


def _of_this_turn(shown: list[Any]) -> str:
    """Earlier answers stand above it in all chats alike, and are masked no more once their names may be known."""
    return str([chat[-1:] for chat in shown[:_CHATS]] + shown[_CHATS:_HISTORY])
