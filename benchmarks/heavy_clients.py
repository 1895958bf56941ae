"""What a small client waits beside two clients with heavy requests: its median and 95th percentile, alone and beside them.

    python benchmarks/heavy_clients.py [--seconds 20]

The engine is `transformers` with the embedded base, all processes share the machine's cores. Heavy clients send their next
request as soon as the last one is answered or refused: prompts of 900 kB, or conversations of 20,000 turns. Each of the three
clients has an API key of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

ROUTE = "/v1/chat/completions"
TEXT = "where is my card? I want my money back. "
TURNS = 20_000


def messages(load: str) -> list[dict[str, str]]:
    if load == "900 kB":
        return [{"role": "user", "content": TEXT * (900_000 // len(TEXT))}]
    roles = ("user", "assistant")
    return [{"role": roles[number % 2], "content": "hi"} for number in range(TURNS - 1)]


async def send(client: httpx.AsyncClient, key: str, content: bytes) -> int:
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    return (await client.post(ROUTE, content=content, headers=headers)).status_code


async def small(url: str, key: str, seconds: float, pause_s: float = 0.05) -> list[float]:
    """Seconds of each answer of a client that sends a short request, waits, and sends the next."""
    took: list[float] = []
    async with httpx.AsyncClient(base_url=url, timeout=300, trust_env=False) as client:
        stop = time.perf_counter() + seconds
        while time.perf_counter() < stop:
            began = time.perf_counter()
            assert await send(client, key, body([{"role": "user", "content": TEXT}])) == 200
            took.append(time.perf_counter() - began)
            await asyncio.sleep(pause_s)
    return took


async def heavy(url: str, key: str, content: bytes, statuses: Counter[int]) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=300, trust_env=False) as client:
        while True:
            statuses[await send(client, key, content)] += 1


def body(turns: list[dict[str, str]]) -> bytes:
    import json

    answer: dict[str, Any] = {"model": "bot@champion", "messages": turns, "max_tokens": 4, "temperature": 0}
    return json.dumps(answer, separators=(",", ":")).encode()


async def beside(url: str, keys: list[str], load: str | None, seconds: float) -> tuple[list[float], Counter[int]]:
    statuses: Counter[int] = Counter()
    clients = []
    if load is not None:
        content = body(messages(load))
        clients = [asyncio.create_task(heavy(url, key, content, statuses)) for key in keys[1:]]
        await asyncio.sleep(2)
    took = await small(url, keys[0], seconds)
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    return took, statuses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    from served_models import VersionMaker
    from serving_process import serving

    from mlflow_finetune_plugin.credentials.api_keys import add_key

    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        uri = f"sqlite:///{scratch}/mlflow.db"
        maker = VersionMaker(uri)
        maker.client.set_registered_model_alias("bot", "champion", maker.make("bot", seed=1))
        file = Path(scratch) / "keys.yaml"
        keys = [add_key(file, name) for name in ("small", "heavy-1", "heavy-2")]
        service_options = ("--engine", "transformers", "--api-key-file", str(file))
        with serving(Path(scratch), uri, "bot", *service_options) as service:
            print(f"{os.cpu_count()} cores, {options.seconds:.0f} s each; milliseconds of the small client's answers")
            for load in (None, "900 kB", f"{TURNS:,} turns"):
                took, statuses = asyncio.run(beside(service.url, keys, load, options.seconds))
                took.sort()
                heavies = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items())) or "none"
                print(
                    f"  {'beside two of ' + load if load else 'alone':<26} median {1000 * statistics.median(took):>7.1f}, "
                    f"95 % {1000 * took[int(0.95 * len(took))]:>7.1f}, answers {len(took):>4}; heavy requests: {heavies}"
                )


if __name__ == "__main__":
    main()
