"""Clients that keep asking a served model while its champion moves, and what came of each answer."""

from __future__ import annotations

import asyncio
import math
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import httpx
from alias_swap import TIE_NATS, Said, Told, ask, say
from mlflow import MlflowClient

CHAMPION, CHALLENGER = "champion", "challenger"
LOOK_S = 0.1


@dataclass(frozen=True)
class Move:
    """``before``: the last look at which the alias meant another version; ``first_seen``: the first at which it meant this one."""

    before: float
    first_seen: float
    version: str | None


@dataclass
class LiveTraffic:
    """``requests``: (model, question, what came back), in the order of the ends."""

    model: str
    challenger: str
    moves: list[Move] = field(default_factory=list)
    requests: list[tuple[str, int, Told]] = field(default_factory=list)

    def champion(self) -> str | None:
        return self.moves[-1].version if self.moves else None

    def first_by(self, move: Move) -> float | None:
        """When the first token of the first answer by that version came to a client of the champion; None: not yet."""
        name = f"{self.model}@{CHAMPION}"
        firsts = [
            answer.first
            for model, _, answer in list(self.requests)
            if model == name and answer.fault is None and answer.version == move.version and answer.first >= move.before
        ]
        return min(firsts, default=None)

    def meant(self, name: str, answer: Told, wait_s: float) -> set[str | None]:
        """Who may answer that request: whoever the name meant from ``wait_s`` before it was sent until its end."""
        ends = [*(after.first_seen for after in self.moves[1:]), math.inf]
        versions = {
            move.version
            for move, end in zip(self.moves, ends, strict=True)
            if move.before <= answer.done and answer.sent <= end + wait_s
        }
        if name == self.model and None in versions:
            return versions - {None} | {self.challenger}
        return versions


@contextmanager
def live_traffic(
    url: str, client: MlflowClient, model: str, questions: Sequence[str], *, clients: int, pause_s: float, tokens: int
) -> Iterator[LiveTraffic]:
    """Half of the clients ask for the champion by its alias, half for the model by its name; every second one streams."""
    traffic = LiveTraffic(model, str(client.get_registered_model(model).aliases[CHALLENGER]))
    stop = threading.Event()

    async def keep_asking(number: int) -> None:
        name = model if number % 4 >= 2 else f"{model}@{CHAMPION}"
        async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as http:
            at = number
            while not stop.is_set():
                messages = [{"role": "user", "content": questions[at % len(questions)]}]
                answer = await ask(http, name, stream=number % 2 == 0, messages=messages, tokens=tokens)
                traffic.requests.append((name, at % len(questions), answer))
                at += 1
                await asyncio.sleep(pause_s)

    async def all_of_them() -> None:
        await asyncio.gather(*(keep_asking(number) for number in range(clients)))

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(_watch, client, traffic, stop), pool.submit(lambda: asyncio.run(all_of_them()))]
        try:
            yield traffic
        finally:
            stop.set()
        for task in running:
            task.result()  # raises what ended it before its time


def _watch(client: MlflowClient, traffic: LiveTraffic, stop: threading.Event) -> None:
    """Looks at the registry itself, not at the router, so that a move is dated by who was told of it first."""
    before = -math.inf
    while not stop.is_set():
        requested = time.perf_counter()
        version = client.get_registered_model(traffic.model).aliases.get(CHAMPION)
        now = time.perf_counter()
        current = None if version is None else str(version)
        if not traffic.moves or current != traffic.champion():
            traffic.moves.append(Move(before, now, current))
        before = requested
        stop.wait(LOOK_S)


def say_all(
    url: str, model: str, versions: Sequence[str], questions: Sequence[str], tokens: int
) -> dict[tuple[str, int], Said]:
    """What each version says to each question when nobody else asks."""

    async def collected() -> dict[tuple[str, int], Said]:
        async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as http:
            return {
                (version, i): await say(
                    http, f"{model}/{version}", messages=[{"role": "user", "content": question}], tokens=tokens
                )
                for version in versions
                for i, question in enumerate(questions)
            }

    return asyncio.run(collected())


def figures(
    traffic: LiveTraffic, expected: Mapping[tuple[str, int], Said], digests: Mapping[str, str], wait_s: float
) -> tuple[dict[str, int | float], list[str]]:
    """Counts over all requests, and the faults one by one. Faults are: a failed request, an answer by a version that the
    name had not meant for ``wait_s`` any more or by an older one after the new one had spoken, a receipt with another
    digest than the registry's, and words that the version does not say alone where no two tokens were near a tie.
    """
    counts: Counter[str] = Counter()
    faults = []
    for name, question, answer in traffic.requests:
        counts["requests"] += 1
        meant = traffic.meant(name, answer, wait_s)
        if answer.fault is not None:
            kind = "no champion yet (404)" if answer.fault.startswith("404") and None in meant else "failed"
        elif answer.version not in meant:
            kind = "by a version not meant"
        elif answer.digest != digests[answer.version]:
            kind = "receipt of another adapter"
        else:
            counts[f"by version {answer.version}"] += 1
            kind = _words(answer, question, expected)
        counts[kind] += 1
        if kind not in ("no champion yet (404)", "as it says alone", "parted at a near tie"):
            faults.append(f"{kind}: {name}, version {answer.version}, {answer.fault or answer.text!r}")
    turned = _turned_back(traffic)
    counts["by the old one after the new one"] = len(turned)
    faults += turned
    for kind in ("failed", "by a version not meant", "receipt of another adapter", "other words"):
        counts.setdefault(kind, 0)
    times = sorted(1000 * (answer.done - answer.sent) for _, _, answer in traffic.requests if answer.fault is None)
    if not times:
        return dict(counts), [*faults, "nobody was answered"]
    high = times[math.ceil(0.95 * len(times)) - 1]
    return {**counts, "p50_ms": statistics.median(times), "p95_ms": high, "slowest_ms": times[-1]}, faults


def _words(answer: Told, question: int, expected: Mapping[tuple[str, int], Said]) -> str:
    assert answer.version is not None
    alone = expected[answer.version, question]
    if answer.text == alone.text:
        return "as it says alone"
    return "parted at a near tie" if alone.lead_where_it_parts(answer.text) < TIE_NATS else "other words"


def _turned_back(traffic: LiveTraffic) -> list[str]:
    faults = []
    for old, new in pairwise(traffic.moves):
        turned, after = traffic.first_by(new), _end_of(traffic, new)
        if turned is None:
            continue
        faults += [
            f"by the old one after the new one: {name}, version {answer.version} sent {answer.sent - turned:.2f} s after"
            for name, _, answer in traffic.requests
            if name == f"{traffic.model}@{CHAMPION}" and turned < answer.sent and answer.done < after
            if answer.fault is None and answer.version == old.version
        ]
    return faults


def _end_of(traffic: LiveTraffic, move: Move) -> float:
    following = traffic.moves[traffic.moves.index(move) + 1 :]
    return following[0].before if following else math.inf
