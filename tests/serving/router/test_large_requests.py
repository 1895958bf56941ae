import asyncio
import threading

import pytest

from mlflow_finetune_plugin.serving.router.large_requests import LargeRequests
from mlflow_finetune_plugin.serving.router.requests import RequestError


def test_large_requests_are_read_one_at_a_time_and_the_event_loop_goes_on():
    running, most, free = 0, 0, threading.Event()

    def read():
        nonlocal running, most
        running += 1
        most = max(most, running)
        free.wait(60)
        running -= 1
        return "read"

    async def scenario():
        queue = LargeRequests()
        tasks = [asyncio.create_task(queue.run(name, read)) for name in ("a", "a", "b", None)]
        await asyncio.sleep(0.1)  # the loop turns while the first one is read
        assert not any(task.done() for task in tasks)
        free.set()
        assert await asyncio.gather(*tasks) == ["read"] * 4
        assert queue._waiting == {}

    asyncio.run(scenario())
    assert most == 1


@pytest.mark.bad_input
def test_a_key_has_no_more_than_four_places_and_the_others_keep_theirs():
    free = threading.Event()

    async def scenario():
        queue = LargeRequests()
        tasks = [asyncio.create_task(queue.run("a", lambda: free.wait(60))) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(RequestError) as refused:
            await queue.run("a", lambda: None)
        assert (refused.value.status, refused.value.code) == (429, "too_many_large_requests")
        others = [asyncio.create_task(queue.run(name, lambda: True)) for name in ["b"] + [None] * 59]
        await asyncio.sleep(0)
        with pytest.raises(RequestError):
            await queue.run("c", lambda: None)
        free.set()
        assert all(await asyncio.gather(*tasks, *others))
        assert await queue.run("a", lambda: "again") == "again"

    asyncio.run(scenario())


def test_a_request_that_cannot_be_read_leaves_its_place():
    def fail():
        raise RequestError(400, "no JSON", "invalid_json")

    async def scenario():
        queue = LargeRequests()
        for _ in range(6):
            with pytest.raises(RequestError, match="no JSON"):
                await queue.run("a", fail)

    asyncio.run(scenario())
