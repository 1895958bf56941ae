"""Does serving stay as large as it was? Many clients for minutes, streamed and not, over several versions; memory by process.

    python benchmarks/serving_soak.py [--engine vllm] [--clients 32] [--minutes 10] [--versions 6]

The memory is that of the router and of its engine's processes (unique set size, MiB), read every 10 seconds. The slope is a
line fitted to the second half of the readings.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import psutil
from serving_registry import engine_options, scratch_registry

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

ROUTE = "/v1/chat/completions"
EVERY_S = 10.0
POOL = 100 * 2**20


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


def sizes(router: psutil.Process) -> tuple[float, float, float]:
    """MiB of its own that the router holds, what it started, and of the latter what lies in mappings of POOL and more."""
    engine = router.children(recursive=True)
    router_mib, engines = (sum(p.memory_full_info().uss for p in group) / 2**20 for group in ([router], engine))
    return router_mib, engines, sum(pools(process.pid) for process in engine)


def pools(pid: int) -> float:
    """MiB in memory of a process's large anonymous mappings: vLLM's key-value cache, which it takes whole at its start."""
    count, large = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Size":
            large = int(value.split()[0]) * 1024 >= POOL
        elif name == "Anonymous" and large:
            count += int(value.split()[0])
    return count / 1024


async def watch(router: psutil.Process, until: float, started: float) -> list[tuple[float, float, float, float]]:
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
    parser = engine_options(__doc__)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--versions", type=int, default=6)
    options = parser.parse_args()
    from serving_process import serving

    with scratch_registry(options.versions) as registry:
        models = ["base", "bot@champion", *(f"bot/{version}" for version in registry.versions)]
        with serving(registry.folder, registry.uri, "bot", "--engine", options.engine) as service:
            router = psutil.Process(service.process.pid)
            (answers, faults), rows = asyncio.run(
                measure(service.url, models, options.clients, options.minutes, router)
            )
    table = np.array(rows)  # (readings, 4): seconds, router, engine, pools
    table = np.column_stack([table[:, :3], table[:, 2] - table[:, 3], table[:, 3]])
    print(f"engine {options.engine}, {options.clients} clients, {options.minutes:g} minutes: {answers:,} answers")
    print(f"  failed {len(faults)}", *faults[:3], sep="\n  " if faults else "")
    columns = ("router", "engine", "engine without its pools", "pools")
    for column, name in enumerate(columns, start=1):
        late = table[len(table) // 2 :]
        slope = np.polyfit(late[:, 0] / 60, late[:, column], 1)[0]
        points = [table[round(share * (len(table) - 1)), column] for share in (0, 0.1, 0.5, 1)]
        print(
            f"  {name}: {points[0]:,.0f} MiB at the start, {points[1]:,.0f} after a tenth, {points[2]:,.0f} half way, "
            f"{points[3]:,.0f} at the end; {slope:+.2f} MiB a minute in the second half"
        )


if __name__ == "__main__":
    main()
