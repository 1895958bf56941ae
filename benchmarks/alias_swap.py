"""An alias moves many times under load: failed requests, answers from a wrong version, and how long a move takes.

    python benchmarks/alias_swap.py [--engine vllm] [--versions 20] [--swaps 100] [--rate 20]

Registers that many versions with random weights on the packaged base, serves them, asks each version by number once for what
it says greedily, then moves the alias again and again while requests come at a fixed rate, every other one streamed. An
answer is wrong when its words are not those of the version that its receipt names, or when it names one that the alias no
longer meant when the request was sent, poll interval and swap included (that time is what is measured as `flip`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

QUESTION = [{"role": "user", "content": "where is my card?"}]
TOKENS = 16


@dataclass
class Told:
    sent: float
    first: float
    done: float
    version: str | None
    text: str
    fault: str | None


@dataclass
class Moves:
    """(seconds, version) of each move, and of the first answer that began with that version."""

    moved: list[tuple[float, str]] = field(default_factory=list)
    answered: list[Told] = field(default_factory=list)


async def ask(client: httpx.AsyncClient, model: str, *, stream: bool) -> Told:
    body = {"model": model, "messages": QUESTION, "temperature": 0, "max_tokens": TOKENS, "stream": stream}
    sent = time.perf_counter()
    first, parts, version, fault = 0.0, [], None, None
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            version = answer.headers.get("x-finetune-version")
            if answer.status_code != 200:
                fault = f"{answer.status_code} {(await answer.aread()).decode()[:200]}"
            elif stream:
                async for line in answer.aiter_lines():
                    first = first or time.perf_counter()
                    if line.startswith("data: {"):
                        event = json.loads(line[6:])
                        if "error" in event:
                            fault = str(event)
                        parts += [choice["delta"].get("content") or "" for choice in event.get("choices", [])]
            else:
                content = json.loads(await answer.aread())
                parts = [content["choices"][0]["message"]["content"] or ""]
    except httpx.HTTPError as error:
        fault = repr(error)
    done = time.perf_counter()
    return Told(sent, first or done, done, version, "".join(parts), fault)


async def measure(
    url: str, model: str, versions: list[str], swaps: int, rate: float, move
) -> tuple[Moves, dict[str, str]]:
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        said = {}
        for version in versions:
            told = await ask(client, f"{model}/{version}", stream=False)
            assert told.fault is None, told.fault
            said[version] = told.text
        moves, running, stop = Moves(), set(), asyncio.Event()

        async def load() -> None:
            number, start = 0, time.perf_counter()
            while not stop.is_set():
                task = asyncio.create_task(ask(client, f"{model}@champion", stream=number % 2 == 0))
                running.add(task)
                task.add_done_callback(lambda done: (running.discard(done), moves.answered.append(done.result())))
                number += 1
                await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))

        loading, dice, now = asyncio.create_task(load()), random.Random(0), versions[0]
        for _ in range(swaps):
            now = dice.choice([version for version in versions if version != now])
            await asyncio.to_thread(move, now)
            moved = time.perf_counter()
            moves.moved.append((moved, now))
            while not any(t.version == now and t.sent >= moved for t in moves.answered):
                if time.perf_counter() - moved > 60:
                    raise SystemExit(f"no answer from version {now} within a minute")
                await asyncio.sleep(0.01)
            await asyncio.sleep(dice.uniform(0.0, 1.0))
        stop.set()
        await loading
        await asyncio.gather(*running)
    return moves, said


def report(moves: Moves, said: dict[str, str], poll_s: float) -> dict[str, float]:
    failed = [told.fault for told in moves.answered if told.fault is not None]
    wrong = []
    flips = []
    for number, (moved, version) in enumerate(moves.moved):
        mine = [told for told in moves.answered if told.version == version and told.sent >= moved]
        flips.append(min(told.first for told in mine) - moved)
        before = {version, moves.moved[number - 1][1]} if number else {version, "1"}
        until = moves.moved[number + 1][0] if number + 1 < len(moves.moved) else float("inf")
        inside = [told for told in moves.answered if moved <= told.sent < until and told.fault is None]
        turned = min((told.done for told in mine), default=moved)
        for told in inside:
            is_late = told.sent > turned and told.version != version
            if told.version not in before or is_late or told.text != said[told.version]:
                wrong.append((told.version, before))
    times = [1000 * (told.done - told.sent) for told in moves.answered]
    flips.sort()
    for fault in failed[:5]:
        print("  failed:", fault)
    return {
        "requests": len(moves.answered),
        "failed": len(failed),
        "wrong": len(wrong),
        "different_answers": len(set(said.values())),
        "flip_p50_s": statistics.median(flips),
        "flip_p99_s": flips[min(len(flips) - 1, int(0.99 * len(flips)))],
        "flip_max_s": flips[-1],
        "goal_s": poll_s + 1,
        "answer_p50_ms": statistics.median(times),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default="vllm", choices=("vllm", "transformers"))
    parser.add_argument("--versions", type=int, default=20)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--poll", type=float, default=1.0)
    parser.add_argument("--max-cpu-loras", type=int, default=8)
    options = parser.parse_args()
    from mlflow import MlflowClient
    from served_models import VersionMaker
    from serving_process import serving

    with tempfile.TemporaryDirectory() as scratch:
        uri = f"sqlite:///{scratch}/mlflow.db"
        os.chdir(scratch)
        maker = VersionMaker(uri)
        versions = [maker.make("swap", seed=seed) for seed in range(options.versions)]
        client = MlflowClient(uri)
        client.set_registered_model_alias("swap", "champion", versions[0])
        extra = ["--poll", str(options.poll), "--max-cpu-loras", str(options.max_cpu_loras)]
        with serving(Path(scratch), uri, "swap", "--engine", options.engine, *extra) as service:
            moves, said = asyncio.run(
                measure(
                    service.url,
                    "swap",
                    versions,
                    options.swaps,
                    options.rate,
                    lambda version: client.set_registered_model_alias("swap", "champion", version),
                )
            )
        figures = report(moves, said, options.poll)
    print(f"engine {options.engine}, {options.versions} versions, {options.swaps} swaps, {options.rate:g} requests/s")
    for name, value in figures.items():
        print(f"  {name:<18} {value:,.3f}" if isinstance(value, float) else f"  {name:<18} {value:,}")


if __name__ == "__main__":
    main()
