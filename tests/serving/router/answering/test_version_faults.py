"""Failed answers: only what the base answers is a fault of the version, once per request, and never more than a few at a time."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from mlflow_finetune_plugin.serving.router.answering.version_faults import FaultComparison, VersionFaults
from mlflow_finetune_plugin.serving.router.requests import read_request

CHAT = "/v1/chat/completions"


def request(question: str, **fields):
    body = {"model": "bot", "messages": [{"role": "user", "content": question}], **fields}
    return read_request(CHAT, json.dumps(body).encode())


def of_base(engine):
    return FaultComparison("the base", engine, "base-model")


class Base:
    """An engine as the base answers on it: with an error to each question that begins with "broken"."""

    def __init__(self) -> None:
        self.requests: list[dict] = []
        self.is_open = asyncio.Event()
        self.is_open.set()
        app = Starlette(routes=[Route(CHAT, self.answer, methods=["POST"])])
        self.engine = SimpleNamespace(
            client=httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://engine"),
            spec=SimpleNamespace(base_name="base-model"),
        )

    async def answer(self, request: Request) -> JSONResponse:
        self.requests.append(await request.json())
        await self.is_open.wait()
        fails = self.requests[-1]["messages"][0]["content"].startswith("broken")
        return JSONResponse({}, 500 if fails else 200)


def counted(*requests, is_open: bool = True) -> tuple[list[tuple[str, str]], list[dict]]:
    """Return the failures that count after the engine failed to answer these, and what the base was asked."""

    async def report() -> tuple[list[tuple[str, str]], list[dict]]:
        base, failures = Base(), []
        faults = VersionFaults(lambda model, version, draw, key: failures.append((model, version)))
        if not is_open:
            base.is_open.clear()
        for answered in requests:
            faults.report("req-1", answered, [of_base(base.engine)], "bot", "3")
        await asyncio.sleep(0.1)
        base.is_open.set()
        await asyncio.gather(*faults._tasks)
        return failures, base.requests

    return asyncio.run(report())


@pytest.mark.bad_input
def test_a_request_that_the_base_cannot_answer_either_is_no_fault_of_the_version():
    failures, base_requests = counted(request("broken by the request"))
    assert (failures, len(base_requests)) == ([], 1)
    assert counted(request("fine for the base"))[0] == [("bot", "3")]


def test_the_base_is_asked_the_same_for_a_few_tokens():
    _, (base_request,) = counted(request("hello", stream=True, max_completion_tokens=500, temperature=0.5, user="me"))
    assert base_request == {
        "model": "base-model",
        "messages": [{"role": "user", "content": "hello"}],
        "temperature": 0.5,
        "max_tokens": 16,
    }
    _, (base_request,) = counted(request("hello", max_tokens=3, min_tokens=9))
    assert (base_request["max_tokens"], base_request["min_tokens"]) == (3, 3)


@pytest.mark.bad_input
def test_the_same_request_counts_once_however_often_it_is_sent():
    same = [request("hello", user=f"user {number}") for number in range(20)]
    assert counted(*same)[0] == [("bot", "3")]
    assert counted(*same, request("hello", temperature=0.1))[0] == [("bot", "3")] * 2


def test_equal_requests_of_two_keys_are_two_signs_of_a_fault():
    async def report() -> list[str | None]:
        base, keys = Base(), []
        faults = VersionFaults(lambda model, version, draw, key: keys.append(key))
        for key in ("alice", "bob", "alice"):
            faults.report("req-1", request("hello"), [of_base(base.engine)], "bot", "3", None, key)
        await asyncio.gather(*faults._tasks)
        return keys

    assert sorted(asyncio.run(report())) == ["alice", "bob"]


@pytest.mark.bad_input
def test_a_flood_of_failures_is_not_asked_again_without_end():
    failures, base_requests = counted(*[request(f"question {number}") for number in range(50)], is_open=False)
    assert len(failures) == len(base_requests) == 4


@pytest.mark.bad_input
def test_one_key_leaves_room_for_the_failures_of_others():
    async def report() -> list[str | None]:
        base, keys = Base(), []
        faults = VersionFaults(lambda model, version, draw, key: keys.append(key))
        base.is_open.clear()
        for number in range(50):
            faults.report("req-1", request(f"question {number}"), [of_base(base.engine)], "bot", "3", None, "alice")
        faults.report("req-2", request("another question"), [of_base(base.engine)], "bot", "3", None, "bob")
        base.is_open.set()
        await asyncio.gather(*faults._tasks)
        return keys

    assert sorted(asyncio.run(report())) == ["alice", "alice", "bob"]


def judged(
    question: str, *, is_loaded: bool = True
) -> tuple[list[tuple[str, str]], list[tuple[str, list[int] | None]]]:
    """Return the failures that count after version 3 failed, and who was asked with which stop ids.

    Version 2 answers with an error to each question that has the word "old", and with 404 where it is not loaded.
    """

    class Both(Base):
        async def answer(self, request: Request) -> JSONResponse:
            response = await super().answer(request)
            body = self.requests[-1]
            if body["model"] == "base-model":
                return response
            is_old = "old" in body["messages"][0]["content"]
            return JSONResponse({}, 404 if not is_loaded else 500 if is_old else 200)

    async def report() -> tuple[list[tuple[str, str]], list[tuple[str, list[int] | None]]]:
        engine, failures = Both(), []
        faults = VersionFaults(lambda model, version, draw, key: failures.append((model, version)))
        before = FaultComparison("version 2", engine.engine, "bot/2-abc", (7, 9))
        faults.report("req-1", request(question), [of_base(engine.engine), before], "bot", "3")
        await asyncio.gather(*faults._tasks)
        return failures, [(body["model"], body.get("stop_token_ids")) for body in engine.requests]

    return asyncio.run(report())


@pytest.mark.bad_input
def test_a_request_that_the_version_before_cannot_answer_either_is_no_fault_of_the_version():
    """The base answers it, but a rollback would not help."""
    both = [("base-model", None), ("bot/2-abc", [7, 9])]
    assert judged("an old question") == ([], both)
    assert judged("a question") == ([("bot", "3")], both)


def test_the_version_before_is_not_asked_what_the_base_cannot_answer():
    assert judged("broken by the request") == ([], [("base-model", None)])


def test_a_version_before_that_is_not_loaded_excuses_nothing():
    assert judged("an old question", is_loaded=False)[0] == [("bot", "3")]


def test_an_engine_that_is_gone_blames_no_version():
    async def report() -> list[tuple[str, str]]:
        failures: list[tuple[str, str]] = []
        faults = VersionFaults(lambda model, version, draw, key: failures.append((model, version)))
        async with httpx.AsyncClient(base_url="http://127.0.0.1:9") as client:  # the discard port: nobody listens
            gone = SimpleNamespace(client=client, spec=SimpleNamespace(base_name="base-model"))
            faults.report("req-1", request("hello"), [of_base(gone)], "bot", "3")
            await asyncio.gather(*faults._tasks)
        return failures

    assert asyncio.run(report()) == []


def test_all_answers_that_are_lost_with_one_process_of_an_engine_count_once():
    failures = []
    faults = VersionFaults(lambda model, version, draw, key: failures.append((model, version)))
    engine = SimpleNamespace(generation=1)
    for _ in range(300):
        faults.report_lost(engine, "bot", "3")
    assert failures == [("bot", "3")]
    engine.generation = 2
    faults.report_lost(engine, "bot", "3")
    assert failures == [("bot", "3")] * 2
