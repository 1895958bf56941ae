"""The playground under load: many people at once, blindness, the start of both sides, a slow side beside a fast one, opening.

    python benchmarks/playground_load.py [--clients 1 25 100] [--turns 200] [--blind-turns 1000] [--openings 10]

`python -m gradio_app` runs as a process behind its guard, over a stub endpoint that is a process too, with MLflow on SQLite;
people are programs that speak the page's own protocol, and Chromium. Prints a Markdown table for results/playground.md;
ends with 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import playground_blindness
import playground_opening
from playground_clients import Person, Turn, config_of, new_http, opened, together
from playground_page import Measured, PageProcess, machine, page_process, table
from streaming_endpoint import router_headers, streaming_endpoint
from votes_cast import register_versions

TEXT = "Here is **bold** and `code`, and what else a model says: the quick brown fox jumps over the lazy dog. "
TOKENS, RATE = 500, 100
GOAL_S, SKEW_GOAL_MS, SLOWED_GOAL = 7.0, 20.0, 0.05
CHAT = ("hello", "", 0.0, 1.0, 512, None, False)
"""What /chat takes: prompt, system prompt, temperature, top p, max tokens, seed, whether it is a new conversation."""
LONG = {"text": TEXT, "tokens": TOKENS, "rate": RATE}
SHORT = {"text": TEXT, "tokens": 10, "rate": 400}
FAST = {"text": TEXT, "tokens": 200, "rate": RATE}
SCRIPTS: dict[str, dict] = {
    **playground_blindness.scripts(),
    "left": LONG | {"headers": router_headers("1")},
    "right": LONG | {"headers": router_headers("2")},
    "short": SHORT | {"headers": router_headers("1")},
    "brief": SHORT | {"headers": router_headers("2")},
    "fast": FAST | {"headers": router_headers("1")},
    "equal": FAST | {"headers": router_headers("2")},
    "slow": FAST | {"tokens": 25, "rate": RATE / 10, "headers": router_headers("2")},
}
PARTS = ("opening", "crowd", "programs", "skew", "slow", "blind")
_TRACES_S = 3.0
"""Rest between two measurements, in which MLflow gets the traces of the one before."""


async def crowd(http: aiohttp.ClientSession, app: PageProcess, endpoint: str, clients: list[int]) -> list[Measured]:
    """All ask at once, blind; the same answers without a page in between are the comparison."""
    results = []
    for count in clients:
        people = await opened(http, app.url, count)
        await asyncio.gather(*(person.meet("left", "right") for person in people))
        await asyncio.sleep(_TRACES_S)
        before = app.cpu_s
        turns = await together(people, f"hello from one of {count}")
        cpu_s = app.cpu_s - before
        await asyncio.sleep(_TRACES_S)
        raw = await raw_s(http, endpoint, 2 * count)
        results.append(_crowd_row(count, turns, cpu_s, raw))
    return results


async def programs(http: aiohttp.ClientSession, app: PageProcess, clients: list[int]) -> list[Measured]:
    """All call /chat at once, each for the first time: nothing was opened before."""
    results = []
    for count in clients:
        config = await config_of(http, app.url)
        people = [Person(http, app.url, config) for _ in range(count)]
        before = app.cpu_s
        turns = await asyncio.gather(*(person.call("chat", *CHAT) for person in people))
        results.append(_crowd_row(count, turns, app.cpu_s - before, None, "programs at /chat"))
        await asyncio.sleep(_TRACES_S)
    return results


def _crowd_row(count: int, turns: list[Turn], cpu_s: float, raw: list[float] | None, who: str = "people") -> Measured:
    took = [turn.took_s for turn in turns]
    updates = [turn.updates for turn in turns]
    value = (
        f"max {max(took):.2f} s, median {statistics.median(took):.2f} s; first words after "
        f"{statistics.median(turn.first_s for turn in turns):.2f} s; {statistics.median(updates):.0f} updates a person "
        f"(least {min(updates)}), longest gap {max(turn.longest_gap_s for turn in turns):.2f} s; app {cpu_s:.1f} CPU s"
    )
    if raw is not None:
        value += f"; raw stream max {max(raw):.2f} s, median {statistics.median(raw):.2f} s"
    return Measured(
        f"{count} {who}, two sides, {TOKENS} tokens at {RATE}/s", value, f"{GOAL_S:g} s", max(took) <= GOAL_S
    )


async def raw_s(http: aiohttp.ClientSession, endpoint: str, count: int) -> list[float]:
    """Seconds of so many answers read at once from the endpoint itself."""
    start = time.monotonic()

    async def read(number: int) -> float:
        body = {"model": "left", "messages": [{"role": "user", "content": f"raw {number}"}], "stream": True}
        async with http.post(f"{endpoint}/chat/completions", json=body) as response:
            async for _ in response.content.iter_any():
                continue
        return time.monotonic() - start

    return list(await asyncio.gather(*(read(number) for number in range(count))))


async def start_skew(http: aiohttp.ClientSession, app: PageProcess, endpoint: str, turns: int) -> list[Measured]:
    """Between the two requests of a turn, as they reach the endpoint."""
    results = []
    for count in (1, 25):
        people = await opened(http, app.url, count)
        await asyncio.gather(*(person.meet("short", "brief") for person in people))
        for number in range(-(-turns // count)):
            if number % 40 == 39:  # a conversation has 50 turns
                await asyncio.gather(*(person.call("_restart", True, "turn") for person in people))
            await asyncio.gather(*(person.ask(f"skew {person.key} {number}") for person in people))
        skews = sorted(await _skews(http, endpoint))
        late = skews[min(len(skews) - 1, int(0.99 * len(skews)))]
        value = f"p99 {late:.1f} ms, max {skews[-1]:.1f} ms, median {statistics.median(skews):.1f} ms of {len(skews)}"
        who = "one person" if count == 1 else f"{count} people at once"
        results.append(
            Measured(f"start skew of the two sides, {who}", value, f"{SKEW_GOAL_MS:g} ms", skews[-1] <= SKEW_GOAL_MS)
        )
    return results


async def _skews(http: aiohttp.ClientSession, endpoint: str) -> list[float]:
    """Milliseconds; forgets what it has read."""
    origin = endpoint.removesuffix("/v1")
    async with http.get(f"{origin}/asked") as response:
        turns = await response.json()
    async with http.get(f"{origin}/forget"):
        pass
    at: dict[str, list[float]] = defaultdict(list)
    for entry in turns:
        if (prompt := entry["messages"][-1]["content"]).startswith("skew"):
            at[prompt].append(entry["at"])
    assert all(len(times) == 2 for times in at.values()), "a turn asked one side only"
    return [1000 * abs(times[0] - times[1]) for times in at.values()]


async def slow_side(http: aiohttp.ClientSession, app: PageProcess, pairs: int, blind_pairs: int) -> list[Measured]:
    """The fast side beside an equal one and beside one ten times slower, in turn: received, and shown where names are."""
    config = await config_of(http, app.url)
    open_eyed, blind = Person(http, app.url, config), Person(http, app.url, config)
    received, hidden = await asyncio.gather(
        _beside_both(open_eyed, pairs, is_blind=False), _beside_both(blind, blind_pairs, is_blind=True)
    )
    views = [
        ("received, names shown", received, 0),
        ("shown, names shown", received, 1),
        ("received, blind", hidden, 0),
    ]
    rows = []
    for what, seconds, side in views:
        equal, slow = (statistics.median(times[side] for times in seconds[other]) for other in ("equal", "slow"))
        more = slow / equal - 1
        value = f"{slow:.3f} s beside it, {equal:.3f} s beside an equal one: {more:+.1%}"
        rows.append(Measured(f"fast side {what}", value, f"+{SLOWED_GOAL:.0%}", more <= SLOWED_GOAL))
    return rows


async def _beside_both(person: Person, pairs: int, *, is_blind: bool) -> dict[str, list[tuple[float, float]]]:
    """Seconds until the fast side was received, and until it was shown."""
    await person.open()
    await person.call("_restart", is_blind, "turn")
    times: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for _ in range(pairs):
        for other in ("equal", "slow"):
            await person.meet("fast", other)
            turn = await person.ask("how fast are you")
            shown = turn.shown
            if is_blind:
                await person.vote("tie")
                shown = (await person.show_names()).shown
            times[other].append((_received_s(shown), turn.changed_s[0]))
    return times


def _received_s(shown: list[Any]) -> float:
    """From the line under the fast side: its first token, and the rest at the speed measured."""
    line = next(match for match in shown if isinstance(match, str) and "<strong>fast</strong>" in match)
    numbers = [re.search(pattern, line) for pattern in (r"([\d,]+) ms", r"([\d,.]+) tokens/s", r"([\d,]+) out")]
    first_ms, speed, tokens = (float(match.group(1).replace(",", "")) for match in numbers if match is not None)
    return first_ms / 1000 + (tokens - 1) / speed


async def calling(app: PageProcess, clients: list[int]) -> list[Measured]:
    async with new_http() as http:
        return await programs(http, app, clients)


async def by_programs(app: PageProcess, endpoint: str, options: argparse.Namespace) -> list[Measured]:
    results: list[Measured] = []
    async with new_http() as http:
        parts = {
            "crowd": lambda: crowd(http, app, endpoint, options.clients),
            "skew": lambda: start_skew(http, app, endpoint, options.turns),
            "slow": lambda: slow_side(http, app, options.pairs, max(1, options.pairs // 2)),
            "blind": lambda: playground_blindness.measure(http, app.url, endpoint, options.blind_turns),
        }
        for name in options.parts:
            if name in parts:
                started = time.monotonic()
                results += await parts[name]()
                print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
                await asyncio.sleep(_TRACES_S)
    return results


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 25, 100])
    parser.add_argument("--turns", type=int, default=200, help="whose start is compared")
    parser.add_argument("--pairs", type=int, default=10, help="of a fast side beside an equal and beside a slow one")
    parser.add_argument("--blind-turns", type=int, default=1000)
    parser.add_argument("--openings", type=int, default=10)
    return parser.parse_args()


def main() -> None:
    options, machine_text, started = parsed(), machine(), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ |= {
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "MLFLOW_FINETUNE_HOME": f"{folder}/home",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        register_versions(os.environ["MLFLOW_TRACKING_URI"])
        with streaming_endpoint(SCRIPTS, folder) as endpoint:
            arguments = ("--endpoint", endpoint, "--model", "bot")
            results = []
            if "opening" in options.parts:
                with page_process(folder, *arguments) as app:
                    results += playground_opening.measure(app.url, options.openings)
            if "programs" in options.parts:
                with page_process(folder, *arguments, "--side", "left", "--side", "right") as app:
                    results += asyncio.run(calling(app, options.clients))
            with page_process(folder, *arguments) as app:
                results += asyncio.run(by_programs(app, endpoint, options))
    print(f"{machine_text}; took {time.monotonic() - started:.0f} s\n\n{table(results)}")
    if any(result.is_met is False for result in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
