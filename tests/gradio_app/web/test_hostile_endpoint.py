"""Endpoints that send too much, nonsense, or somebody else's answer: real ones, on this machine."""

import asyncio
import gzip
import json
import resource

import pytest

from gradio_app.chat import client
from gradio_app.chat.client import Endpoint, SamplingSettings, StreamedAnswer, is_of, new_http, receive
from gradio_app.chat.endpoints import discover
from mlflow_finetune_plugin.votes import Receipt

ASKED = [{"role": "user", "content": "hello"}]


def event(told):
    return b"data: " + (told if isinstance(told, bytes) else json.dumps(told).encode()) + b"\n\n"


def said(text):
    return event({"choices": [{"index": 0, "delta": {"content": text}}]})


DONE = event(b"[DONE]")


async def served(body, ask, *, headers=(), status=200):
    """What ``ask`` gets from an endpoint that answers everything with ``body``: bytes, or pieces for ever."""

    async def answer(reader, writer):
        try:
            await reader.readuntil(b"\r\n\r\n")
            head = [f"HTTP/1.1 {status} X", "connection: close", *(f"{name}: {value}" for name, value in headers)]
            writer.write("\r\n".join([*head, "", ""]).encode())
            for piece in [body] if isinstance(body, bytes) else body():
                writer.write(piece)
                await writer.drain()
                if not isinstance(body, bytes):
                    await asyncio.sleep(0)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        return await ask(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
    finally:
        server.close()


def answer_of(body, *, model="base", key=None, **more):
    async def ask(url):
        answer = StreamedAnswer()
        async with new_http() as http:
            await receive(http, Endpoint(url, key), model, ASKED, SamplingSettings(), answer)
        return answer

    return asyncio.run(served(body, ask, **more))


def models_of(body, **more):
    async def ask(url):
        async with new_http() as http:
            return await discover(http, [Endpoint(url)])

    return asyncio.run(served(body, ask, **more))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "event_bytes",
    [
        b"[" * 100_000,
        b'{"choices": {"a": 1}}',
        b'{"choices": ["text"]}',
        b'{"choices": [{"delta": "text"}]}',
        b'{"choices": [null]}',
        b'"text"',
    ],
)
def test_an_event_that_is_no_event_breaks_the_answer_off(event_bytes):
    answer = answer_of(said("half an") + event(event_bytes) + said(" answer") + DONE)
    assert answer.fault == "broke off its answer"
    assert answer.text == "half an"


def test_counts_that_are_no_counts_are_none():
    told = {"choices": [], "usage": {"prompt_tokens": "many", "completion_tokens": -3}}
    answer = answer_of(said("whole") + event(told) + DONE)
    assert (answer.prompt_tokens, answer.completion_tokens, answer.tokens_per_s) == (None, None, None)
    assert answer.fault is None


def test_half_a_surrogate_pair_is_shown_as_what_it_is():
    answer = answer_of(event(b'{"choices": [{"delta": {"content": "a \\ud83d b"}}]}') + DONE)
    assert answer.text == "a ? b"
    answer.text.encode()


@pytest.mark.bad_input
def test_what_is_packed_is_not_unpacked():
    bomb = gzip.compress(b"x" * 300_000_000, 9)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    headers = [("content-encoding", "gzip"), ("content-type", "text/event-stream")]
    assert answer_of(bomb, headers=headers).fault == "broke off its answer"
    assert answer_of(bomb, headers=headers, status=500).fault == "refused the request (HTTP 500)"
    assert models_of(bomb, headers=headers).contenders == ()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # kB


@pytest.mark.bad_input
def test_a_list_of_models_without_an_end_is_not_read():
    def for_ever():
        yield b'{"data": ['
        while True:
            yield b'{"id": "x"},' * 5000

    served_now = models_of(for_ever)
    assert served_now.contenders == ()
    assert "not with a list of models as in OpenAI's API" in served_now.faults[0]


def test_events_that_say_nothing_end_at_last(monkeypatch):
    monkeypatch.setattr(client, "LONGEST_S", 0.5)

    def for_ever():
        while True:
            yield b": still here\n\n"

    answer = answer_of(for_ever)
    assert answer.fault.startswith("was cut off after")
    assert answer.is_over


def receipt_headers(model, version):
    digest = "" if version == "base" else "a" * 64
    return [
        ("x-finetune-model", model),
        ("x-finetune-version", version),
        ("x-finetune-adapter-digest", digest),
        ("x-finetune-base-digest", "b" * 64),
        ("x-finetune-request-id", "r-1"),
    ]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("asked", "model", "version"),
    [("base", "bot", "2"), ("bot@champion", "bot", "base"), ("bot@champion", "other", "2"), ("bot/2", "bot", "3")],
)
def test_an_answer_of_another_model_than_was_asked_is_told_and_not_shown(asked, model, version):
    """A base that silently answers with the adapter on it makes every comparison with it worthless."""
    answer = answer_of(said("hello") + DONE, model=asked, headers=receipt_headers(model, version))
    assert answer.fault == "answered as another model"
    assert answer.text == ""
    assert f"the request named {asked}, the receipt names {model}/{version}" in answer.fault_detail


@pytest.mark.parametrize(
    ("asked", "model", "version"),
    [
        ("base", "org/small", "base"),
        ("org/small", "org/small", "base"),
        ("bot@champion", "bot", "7"),
        ("bot/7", "bot", "7"),
        ("my bot ü@champion", "my bot ü", "1"),
    ],
)
def test_receipts_of_who_was_asked_are_taken(asked, model, version):
    assert is_of(Receipt(model, version, "" if version == "base" else "a" * 64, "b" * 64, "r"), asked)


def test_a_key_that_the_endpoint_says_is_not_told():
    refusal = json.dumps({"error": {"message": "Incorrect API key provided: sk-secret-1."}}).encode()
    answer = answer_of(refusal, key="sk-secret-1", status=401)
    assert answer.fault == "refused the request (HTTP 401: it needs an API key, or another one)"
    assert answer.fault_detail == "Incorrect API key provided: …."
