"""What the router costs beside its engine asked directly: time to first token, its own CPU time per chunk, throughput.

    python benchmarks/router_overhead.py [--engine vllm] [--pairs 200] [--seconds 20] [--clients 1 8 32]

Requests of both sides take turns, so that what else the machine does falls on both. The engine's port and key are read from
its own process, which only the same user can.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

QUESTION = [{"role": "user", "content": "where is my card?"}]
ROUTE = "/v1/chat/completions"


@dataclass(frozen=True)
class Side:
    url: str
    model: str
    headers: dict[str, str]


async def stream(client: httpx.AsyncClient, side: Side, tokens: int) -> tuple[float, int]:
    """(seconds to the first event, events)."""
    body = {"model": side.model, "messages": QUESTION, "temperature": 0, "max_tokens": tokens, "stream": True}
    started, first, events = time.perf_counter(), 0.0, 0
    async with client.stream(
        "POST", side.url + ROUTE, json={**body, "ignore_eos": True}, headers=side.headers
    ) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                first = first or time.perf_counter() - started
                events += 1
    return first, events


async def one_client(direct: Side, router: Side, pairs: int) -> tuple[list[float], list[float]]:
    firsts: tuple[list[float], list[float]] = ([], [])
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        for number in range(pairs + 10):
            for position, side in enumerate((direct, router) if number % 2 else (router, direct)):
                first, _ = await stream(client, side, 4)
                if number >= 10:  # the first ones warm up
                    firsts[(position == 0) != bool(number % 2)].append(first)
    return firsts


async def many_clients(side: Side, clients: int, seconds: float) -> float:
    """Events a second."""
    events, stop = 0, time.perf_counter() + seconds
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(timeout=120, limits=limits, trust_env=False) as client:

        async def run() -> None:
            nonlocal events
            while time.perf_counter() < stop:
                _, answer = await stream(client, side, 32)
                events += answer

        started = time.perf_counter()
        await asyncio.gather(*(run() for _ in range(clients)))
    return events / (time.perf_counter() - started)


def engine_side(router: psutil.Process, model: str) -> Side:
    """The engine's address, key and its own name for the model."""
    engine = next(p for p in router.children() if {"VLLM_API_KEY", "FINETUNE_ENGINE_KEY"} & p.environ().keys())
    environment, words = engine.environ(), engine.cmdline()
    if "FINETUNE_ENGINE_KEY" in environment:
        key, port = environment["FINETUNE_ENGINE_KEY"], json.loads(Path(words[-1]).read_text())["port"]
    else:
        key, port = environment["VLLM_API_KEY"], words[words.index("--port") + 1]
    headers = {"Authorization": f"Bearer {key}"}
    names = httpx.get(f"http://127.0.0.1:{port}/v1/models", headers=headers).json()["data"]
    name = next(entry["id"] for entry in names if entry["id"].startswith(f"{model}/"))
    return Side(f"http://127.0.0.1:{port}", name, headers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default="vllm", choices=("vllm", "transformers"))
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32])
    options = parser.parse_args()
    from served_models import VersionMaker
    from serving_process import serving

    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        uri = f"sqlite:///{scratch}/mlflow.db"
        maker = VersionMaker(uri)
        maker.client.set_registered_model_alias("bot", "champion", maker.make("bot", seed=1))
        with serving(Path(scratch), uri, "bot", "--engine", options.engine) as service:
            process = psutil.Process(service.process.pid)
            direct = engine_side(process, "bot")
            router = Side(service.url, "bot@champion", {})
            first_direct, first_router = asyncio.run(one_client(direct, router, options.pairs))
            added = [1000 * (b - a) for a, b in zip(first_direct, first_router, strict=True)]
            print(f"engine {options.engine}, {options.pairs} pairs, one client, milliseconds to the first token")
            for name, values in (("engine", first_direct), ("router", first_router)):
                print(f"  {name:<7} median {1000 * statistics.median(values):.2f}")
            print(f"  added   median {statistics.median(added):.2f}, 90 % {sorted(added)[int(0.9 * len(added))]:.2f}")
            for clients in options.clients:
                alone = asyncio.run(many_clients(direct, clients, options.seconds))
                before = sum(process.cpu_times()[:2])
                routed = asyncio.run(many_clients(router, clients, options.seconds))
                used = sum(process.cpu_times()[:2]) - before
                share = 1e6 * used / (routed * options.seconds)
                print(
                    f"  {clients:>2} clients: engine {alone:,.0f} chunks/s, through the router {routed:,.0f} "
                    f"({routed / alone:.2f}); router's CPU {share:.0f} microseconds a chunk"
                )


if __name__ == "__main__":
    main()
