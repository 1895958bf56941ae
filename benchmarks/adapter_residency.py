"""What it costs that adapters come and go: first token of a version never seen, of one unloaded, of one loaded; throughput of more
adapters than slots, and of an adapter beside its base.

    python benchmarks/adapter_residency.py [--engine vllm] [--versions 12] [--slots 4] [--seconds 20] [--rank 16]

Cold: asked for by number for the first time, so fetched from the registry, verified, loaded, certified. Cached: it was unloaded,
its files are in the store. Warm: asked again at once. Throughput is chunks a second of as many streaming clients as twice the
slots; each client keeps to one adapter, the number of adapters is what differs, and the runs take turns.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from pathlib import Path

import httpx
from serving_registry import engine_options, scratch_registry

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

QUESTION = [{"role": "user", "content": "where is my card?"}]
ROUTE = "/v1/chat/completions"
TOKENS = 32


def first_token(client: httpx.Client, model: str) -> float:
    """Milliseconds from sending to the first event."""
    body = {"model": model, "messages": QUESTION, "temperature": 0, "max_tokens": 4, "stream": True}
    started = time.perf_counter()
    with client.stream("POST", ROUTE, json=body) as answer:
        assert answer.status_code == 200, answer.read()
        next(answer.iter_lines())
        return 1000 * (time.perf_counter() - started)


async def chunks_a_second(url: str, models: list[str], clients: int, seconds: float) -> float:
    events, stop = 0, time.perf_counter() + seconds
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=clients)) as client:

        async def run(model: str) -> None:
            nonlocal events
            body = {"model": model, "messages": QUESTION, "temperature": 0, "max_tokens": TOKENS, "stream": True}
            while time.perf_counter() < stop:
                async with client.stream("POST", ROUTE, json={**body, "ignore_eos": True}) as answer:
                    assert answer.status_code == 200, await answer.aread()
                    async for line in answer.aiter_lines():
                        events += line.startswith("data: {")

        started = time.perf_counter()
        await asyncio.gather(*(run(models[number % len(models)]) for number in range(clients)))
    return events / (time.perf_counter() - started)


def first_tokens(url: str, versions: list[str]) -> dict[str, list[float]]:
    """Two versions may stay loaded, so each is unloaded when it comes round again."""
    times_ms: dict[str, list[float]] = {"cold": [], "cached": [], "warm": []}
    with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
        first_token(client, "bot@champion")
        for name in ("cold", "cached", "cached"):
            for version in versions:
                times_ms[name].append(first_token(client, f"bot/{version}"))
                times_ms["warm"].append(first_token(client, f"bot/{version}"))
    return times_ms


def main() -> None:
    parser = engine_options(__doc__)
    parser.add_argument("--versions", type=int, default=12)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rank", type=int, default=16)
    options = parser.parse_args()
    from serving_process import serving

    with scratch_registry(options.versions + 1, r=options.rank) as registry:
        versions = registry.versions
        served = (registry.folder, registry.uri, "bot", "--engine", options.engine)
        slots = ["--max-loras", str(options.slots), "--max-cpu-loras", str(options.slots)]
        print(f"engine {options.engine}, rank {options.rank}, milliseconds to the first token")
        with serving(*served, "--max-loaded", "2") as service:
            for name, values in first_tokens(service.url, versions[1:]).items():
                ordered = sorted(values)
                print(
                    f"  {name:<7} median {statistics.median(values):6.1f}, largest {ordered[-1]:6.1f}, n {len(values)}"
                )
        clients = 2 * options.slots
        sides = {
            "base": ["base"],
            "1 adapter": ["bot/2"],
            f"{options.slots} adapters": [f"bot/{version}" for version in versions[: options.slots]],
            f"{clients} adapters": [f"bot/{version}" for version in versions[:clients]],
        }
        print(f"{clients} clients, {options.slots} slots, chunks a second (median of {options.repeats})")
        with serving(*served, *slots) as service:
            rates: dict[str, list[float]] = {name: [] for name in sides}
            for number in range(options.repeats + 1):
                for name, models in sides.items():
                    rate = asyncio.run(chunks_a_second(service.url, models, clients, options.seconds if number else 3))
                    if number:  # the first round warms up
                        rates[name].append(rate)
        for name, values in rates.items():
            print(f"  {name:<11} {statistics.median(values):8,.0f}")
        print(json.dumps({name: [round(value, 1) for value in values] for name, values in rates.items()}))


if __name__ == "__main__":
    main()
