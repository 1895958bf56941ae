"""An alias moves many times under load: failed requests, answers from a wrong version, and how long a move takes.

    python benchmarks/alias_swap.py [--engine vllm] [--versions 20] [--swaps 100] [--rate 20]

Registers that many versions with random weights on the packaged base, serves them, asks each version by number once for what
it says greedily, then moves the alias again and again while requests come at a fixed rate, every other one streamed. An
answer is late when its receipt names a version that the alias no longer meant when the request was sent (until the flip, which
is measured, the old one may answer). Its words are compared with what its version said alone: where they differ, they are
another version's, or they part at a token whose runner-up was within 0.01 nats, which the company in a batch may turn round
(a tie), or they are unexplained.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from serving_registry import engine_options, scratch_registry

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

QUESTION = [{"role": "user", "content": "where is my card?"}]
TOKENS = 16
TIE_NATS = 0.01


@dataclass
class Told:
    sent: float
    first: float
    done: float
    version: str | None
    text: str
    fault: str | None
    digest: str | None = None


@dataclass(frozen=True)
class Said:
    """What a version says greedily when it is asked alone: its tokens' texts, and how far each is ahead of the next, in nats."""

    text: str
    tokens: tuple[str, ...]
    leads: tuple[float, ...]

    def lead_where_it_parts(self, other: str) -> float:
        """The lead of the first token that is not in ``other`` any more."""
        at = 0
        for token, lead in zip(self.tokens, self.leads, strict=True):
            if not other.startswith(token, at):
                return lead
            at += len(token)
        return 0.0 if at >= len(other) else self.leads[-1]


@dataclass
class Move:
    """``asked`` and ``moved``: when the registry was told, and when it had answered that."""

    requested: float
    moved: float
    version: str


@dataclass
class Moves:
    moved: list[Move] = field(default_factory=list)
    answered: list[Told] = field(default_factory=list)


async def ask(
    client: httpx.AsyncClient,
    model: str,
    *,
    stream: bool,
    messages: list[dict[str, str]] = QUESTION,
    tokens: int = TOKENS,
) -> Told:
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": tokens, "stream": stream}
    sent = time.perf_counter()
    first, parts, version, digest, fault, ended = 0.0, [], None, None, None, False
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            version = answer.headers.get("x-finetune-version")
            digest = answer.headers.get("x-finetune-adapter-digest")
            if answer.status_code != 200:
                fault = f"{answer.status_code} {(await answer.aread()).decode()[:200]}"
            elif stream:
                async for line in answer.aiter_lines():
                    first = first or time.perf_counter()
                    ended = ended or line == "data: [DONE]"
                    if line.startswith("data: {"):
                        event = json.loads(line[6:])
                        if "error" in event:
                            fault = str(event)
                        parts += [choice["delta"].get("content") or "" for choice in event.get("choices", [])]
                fault = fault or (None if ended else "the stream broke off")
            else:
                content = json.loads(await answer.aread())
                parts = [content["choices"][0]["message"]["content"] or ""]
    except httpx.HTTPError as error:
        fault = repr(error)
    done = time.perf_counter()
    return Told(sent, first or done, done, version, "".join(parts), fault, digest)


async def say(
    client: httpx.AsyncClient, model: str, *, messages: list[dict[str, str]] = QUESTION, tokens: int = TOKENS
) -> Said:
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": tokens}
    answer = await client.post("/v1/chat/completions", json={**body, "logprobs": True, "top_logprobs": 2})
    answer.raise_for_status()
    choice = answer.json()["choices"][0]
    content = choice["logprobs"]["content"]
    leads = [token["top_logprobs"][0]["logprob"] - token["top_logprobs"][1]["logprob"] for token in content]
    return Said(choice["message"]["content"] or "", tuple(token["token"] for token in content), tuple(leads))


async def measure(
    url: str, model: str, versions: list[str], swaps: int, rate: float, move
) -> tuple[Moves, dict[str, Said]]:
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        answers = {}
        for version in versions:
            answers[version] = await say(client, f"{model}/{version}")
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
            requested = time.perf_counter()
            await asyncio.to_thread(move, now)
            moved = time.perf_counter()
            moves.moved.append(Move(requested, moved, now))
            while not any(t.version == now and t.sent >= moved for t in moves.answered):
                if time.perf_counter() - moved > 60:
                    raise SystemExit(f"no answer from version {now} within a minute")
                await asyncio.sleep(0.01)
            await asyncio.sleep(dice.uniform(0.0, 1.0))
        stop.set()
        await loading
        await asyncio.gather(*running)
    return moves, answers


def report(moves: Moves, answers: dict[str, Said], poll_s: float) -> dict[str, float]:
    failed = [answer.fault for answer in moves.answered if answer.fault is not None]
    counts = dict.fromkeys(("late", "another_version", "tie", "unexplained"), 0)
    flips = []
    following = [*moves.moved[1:], Move(float("inf"), float("inf"), "")]
    before = ["1", *(move.version for move in moves.moved)]
    for move, after, previous in zip(moves.moved, following, before, strict=False):
        mine = [answer for answer in moves.answered if answer.version == move.version and answer.sent >= move.moved]
        flips.append(min(answer.first for answer in mine) - move.requested)
        turned = min(answer.done for answer in mine)
        for answer in moves.answered:
            if move.moved <= answer.sent < after.moved and answer.fault is None:
                allowed = {move.version}
                allowed |= {previous} if answer.sent <= turned else set()
                allowed |= {after.version} if answer.done >= after.requested else set()
                counts["late"] += answer.version not in allowed
    for answer in moves.answered:
        if answer.fault is None and answer.version is not None and answer.text != answers[answer.version].text:
            counts[_why(answer, answers)] += 1
    times = [1000 * (answer.done - answer.sent) for answer in moves.answered]
    flips.sort()
    for fault in failed[:5]:
        print("  failed:", fault)
    return {
        "requests": len(moves.answered),
        "failed": len(failed),
        **counts,
        "different_answers": len({expected.text for expected in answers.values()}),
        "flip_p50_s": statistics.median(flips),
        "flip_p99_s": flips[min(len(flips) - 1, int(0.99 * len(flips)))],
        "flip_max_s": flips[-1],
        "goal_s": poll_s + 1,
        "answer_p50_ms": statistics.median(times),
    }


def _why(answer: Told, answers: dict[str, Said]) -> str:
    """Whose words they are, if not those that its version said alone."""
    assert answer.version is not None
    if any(answer.text == expected.text for version, expected in answers.items() if version != answer.version):
        return "another_version"
    return "tie" if answers[answer.version].lead_where_it_parts(answer.text) < TIE_NATS else "unexplained"


def main() -> None:
    parser = engine_options(__doc__)
    parser.add_argument("--versions", type=int, default=20)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--poll", type=float, default=1.0)
    parser.add_argument("--max-cpu-loras", type=int, default=8)
    options = parser.parse_args()
    from serving_process import serving

    with scratch_registry(options.versions) as registry:
        extra = ["--poll", str(options.poll), "--max-cpu-loras", str(options.max_cpu_loras)]
        with serving(registry.folder, registry.uri, "bot", "--engine", options.engine, *extra) as service:
            moves, answers = asyncio.run(
                measure(
                    service.url,
                    "bot",
                    registry.versions,
                    options.swaps,
                    options.rate,
                    lambda version: registry.client.set_registered_model_alias("bot", "champion", version),
                )
            )
        figures = report(moves, answers, options.poll)
    print(f"engine {options.engine}, {options.versions} versions, {options.swaps} swaps, {options.rate:g} requests/s")
    for name, value in figures.items():
        print(f"  {name:<18} {value:,.3f}" if isinstance(value, float) else f"  {name:<18} {value:,}")


if __name__ == "__main__":
    main()
