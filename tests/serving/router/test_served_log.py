"""A router counts the latencies of successful answers, and writes them to the registry."""

import asyncio
import contextlib
from types import SimpleNamespace

from mlflow_finetune_plugin.serving.router.served_log import ServedLog
from mlflow_finetune_plugin.store.latency_counts import LatencyCounts
from mlflow_finetune_plugin.store.served_tags import served


def test_all_successful_answers_are_counted_by_latency():
    asyncio.run(check_counts())


async def check_counts():
    tags = {}
    client = SimpleNamespace(set_model_version_tag=lambda model, version, key, value: tags.update({key: value}))
    log, times = ServedLog(client, 8000, every_s=0.01), [float(5 + i % 900) for i in range(3000)]
    for ms in times:
        log.note("bot", "1", ms)
    log.note("bot", "1", None)
    task = asyncio.create_task(log.run())
    while not tags:
        await asyncio.sleep(0.01)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    (summary,) = served(tags, "bot/1").values()
    assert (summary.answers, summary.failed, summary.recent.answers) == (3001, 1, 1000)
    assert summary.latencies == LatencyCounts.of(times)
    assert len(next(iter(tags.values()))) < 4000, "a tag stays small"
