"""An engine that hangs is replaced; one that is busy, or slow to answer a probe, is not."""

import asyncio
import os
import signal
import time
from types import SimpleNamespace

import httpx
import pytest

from mlflow_finetune_plugin.serving.engines.fleet import Fleet
from mlflow_finetune_plugin.serving.engines.liveness import LivenessLimits, until_silent
from mlflow_finetune_plugin.serving.settings import TRANSFORMERS, EngineLimits
from mlflow_finetune_plugin.serving.versions.adapter_store import AdapterStore
from mlflow_finetune_plugin.serving.versions.bases import Bases
from mlflow_finetune_plugin.serving.versions.fetching import Fetcher

LIMITS = LivenessLimits(every_s=0.01, idle_s=2, busy_s=600)


async def answers():
    return None


async def fails():
    raise httpx.ReadError("the process ended")


async def never():
    await asyncio.Event().wait()


def watched(running=0):
    return SimpleNamespace(running=running, sent_at=time.monotonic())


def test_a_silent_engine_hangs():
    silent = [
        (never, answers, 0, "it did not answer a health check for 2 s"),
        (never, answers, 5, "it did not answer a health check for 2 s"),
        (answers, never, 0, "it generated no token for 2 s"),
    ]

    async def scenario():
        return await asyncio.gather(
            *(
                asyncio.wait_for(until_silent(watched(running), LIMITS, health, token), 60)
                for health, token, running, _ in silent
            )
        )

    assert asyncio.run(scenario()) == [fault for *_, fault in silent]


def test_an_engine_that_answers_ended_or_has_requests_does_not_hang():
    busy = {"answers": (answers, answers, 0), "ended": (fails, fails, 0), "waits behind requests": (answers, never, 1)}

    async def scenario():
        watches = {
            name: asyncio.create_task(until_silent(watched(running), LIMITS, health, token))
            for name, (health, token, running) in busy.items()
        }
        await asyncio.sleep(5)
        assert [name for name, watch in watches.items() if watch.done()] == []

    asyncio.run(scenario())


def test_a_busy_engine_that_sends_parts_of_answers_does_not_hang():
    async def scenario():
        transport = watched(running=3)
        limits = LivenessLimits(every_s=0.01, idle_s=60, busy_s=2)
        watching = asyncio.create_task(until_silent(transport, limits, answers, never))
        for _ in range(50):
            await asyncio.sleep(0.1)
            transport.sent_at = time.monotonic()
        assert not watching.done()
        assert await asyncio.wait_for(watching, 60) == "it generated no token for 2 s"

    asyncio.run(scenario())


@pytest.mark.fault
@pytest.mark.process
def test_a_stopped_engine_is_replaced_and_answers_again(tmp_path, registry, monkeypatch):
    limits = LivenessLimits(every_s=0.5, idle_s=10, busy_s=600)
    monkeypatch.setattr("mlflow_finetune_plugin.serving.engines.engine.LivenessLimits", lambda: limits)
    fetcher = Fetcher(registry.client, AdapterStore(tmp_path / "store"))

    async def scenario():
        fleet = Fleet(TRANSFORMERS, EngineLimits(), tmp_path, Bases(()).find, lambda v, c: None)
        try:
            resident = await fleet.admit(fetcher.fetch("bot", "1"))
            engine = resident.engine
            before, generation = engine.pid, engine.generation
            os.killpg(before, signal.SIGSTOP)
            deadline = time.monotonic() + 120
            while engine.state == "ready":
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)
            assert fleet.faults()
            await engine.wait_ready(240)
            assert engine.generation > generation
            assert engine.pid != before
            async with fleet.using(resident) as again:
                body = {"model": resident.name, "prompt": "a", "max_tokens": 1}
                assert (await again.complete(body))["choices"]
                assert again.running == 0
        finally:
            await fleet.stop()

    asyncio.run(scenario())
