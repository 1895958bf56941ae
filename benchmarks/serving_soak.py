"""Does serving stay as large as it was? Many clients for minutes, streamed and not, over several versions; memory by process.

    python benchmarks/serving_soak.py [--engine vllm] [--clients 32] [--minutes 10] [--versions 6]

The memory is that of the router and of its engine's processes (unique set size, MiB), read every 10 seconds. The slope is a
line fitted to the second half of the readings.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

ROUTE = "/v1/chat/completions"
EVERY_S = 10.0


async def load(url: str, models: list[str], clients: int, until: float) -> tuple[int, list[str]]:
    """(answers, faults)."""
    answers, faults, dice = 0, [], random.Random(0)
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits, trust_env=False) as client:

        async def run() -> None:
            nonlocal answers
            while time.monotonic() < until:
                question = [{"role": "user", "content": f"where is card {dice.randrange(10**6)}?"}]
                stream = dice.random() < 0.5
                body = {"model": dice.choice(models), "messages": question, "max_tokens": 32, "stream": stream}
                try:
                    answer = await client.post(ROUTE, json=body)
                except httpx.HTTPError as error:
                    faults.append(repr(error))
                    continue
                if answer.status_code != 200 or (stream and not answer.text.rstrip().endswith("[DONE]")):
                    faults.append(f"{answer.status_code} {answer.text[-200:]}")
                answers += 1

        await asyncio.gather(*(run() for _ in range(clients)))
    return answers, faults


def sizes(router: psutil.Process) -> tuple[float, float]:
    """MiB of the router and of what it started."""
    return tuple(  # type: ignore[return-value]
        sum(process.memory_full_info().uss for process in group) / 2**20
        for group in ([router], router.children(recursive=True))
    )


async def watch(router: psutil.Process, until: float, started: float) -> list[tuple[float, float, float]]:
    rows = []
    while time.monotonic() < until:
        rows.append((time.monotonic() - started, *await asyncio.to_thread(sizes, router)))
        await asyncio.sleep(EVERY_S)
    return rows


async def measure(url: str, models: list[str], clients: int, minutes: float, router: psutil.Process):
    started = time.monotonic()
    until = started + 60 * minutes
    return await asyncio.gather(load(url, models, clients, until), watch(router, until, started))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default="vllm", choices=("vllm", "transformers"))
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--versions", type=int, default=6)
    options = parser.parse_args()
    from served_models import VersionMaker
    from serving_process import serving

    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        uri = f"sqlite:///{scratch}/mlflow.db"
        maker = VersionMaker(uri)
        versions = [maker.make("bot", seed=seed) for seed in range(options.versions)]
        maker.client.set_registered_model_alias("bot", "champion", versions[0])
        models = ["base", "bot@champion", *(f"bot/{version}" for version in versions)]
        with serving(Path(scratch), uri, "bot", "--engine", options.engine) as service:
            router = psutil.Process(service.process.pid)
            (answers, faults), rows = asyncio.run(
                measure(service.url, models, options.clients, options.minutes, router)
            )
    table = np.array(rows)  # (readings, 3): seconds, router, engine
    print(f"engine {options.engine}, {options.clients} clients, {options.minutes:g} minutes: {answers:,} answers")
    print(f"  failed {len(faults)}", *faults[:3], sep="\n  " if faults else "")
    for column, name in ((1, "router"), (2, "engine")):
        late = table[len(table) // 2 :]
        slope = np.polyfit(late[:, 0] / 60, late[:, column], 1)[0]
        points = [table[round(share * (len(table) - 1)), column] for share in (0, 0.1, 0.5, 1)]
        print(
            f"  {name}: {points[0]:,.0f} MiB at the start, {points[1]:,.0f} after a tenth, {points[2]:,.0f} half way, "
            f"{points[3]:,.0f} at the end; {slope:+.2f} MiB a minute in the second half"
        )


if __name__ == "__main__":
    main()
