"""The limits of connections, on a real server and real sockets, with a small application and short limits."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse

from mlflow_finetune_plugin.serving.connections import ConnectionLimits
from mlflow_finetune_plugin.serving.http_server import HttpServer, http_config

HALF = b"POST / HTTP/1.1\r\nHost: localhost\r\nX-Half: "
WHOLE = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def app(scope, receive, send):
    """Streams until the client leaves for ``/stream``, waits for no body for ``/early``, and echoes bodies elsewhere."""

    async def endless():
        while True:
            yield b"x"
            await asyncio.sleep(0.05)

    request = Request(scope, receive)
    if request.url.path == "/stream":
        answer = StreamingResponse(endless())
    else:
        answer = PlainTextResponse(b"early" if request.url.path == "/early" else await request.body())
    await answer(scope, receive, send)


@contextlib.contextmanager
def serving(limits: ConnectionLimits) -> Iterator[int]:
    sock = socket.create_server(("127.0.0.1", 0))
    listening = threading.Event()
    server = HttpServer(http_config(app, limits, drain_s=1, lifespan="off"), listening.set)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[sock])))
    thread.start()
    try:
        assert listening.wait(60)
        yield sock.getsockname()[1]
    finally:
        server.end()
        thread.join(60)


def connect(port: int, host: str = "127.0.0.1", source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection((host, port), timeout=60, source_address=(source, 0))


def rest_of(raw: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := raw.recv(65536):
            parts.append(part)
    return b"".join(parts)


def answer_on(raw: socket.socket) -> tuple[int, bytes]:
    """The status and the whole body of the next answer; headers and body may come apart."""
    answer = http.client.HTTPResponse(raw)
    answer.begin()
    return answer.status, answer.read()


@pytest.mark.bad_input
def test_headers_without_an_end_are_refused_by_their_size():
    with serving(ConnectionLimits()) as port, connect(port) as raw:
        sent = 0
        with contextlib.suppress(ConnectionError):
            raw.sendall(HALF)
            while sent < 50_000_000:
                sent += raw.send(b"x" * 65536)
        assert sent < 20_000_000, "the server stops reading; the rest is in buffers of the sockets"
        with contextlib.suppress(ConnectionError):
            assert rest_of(raw).startswith(b"HTTP/1.1 400")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("before", "answer"),
    [
        (b"", b"HTTP/1.1 408"),
        (HALF, b"HTTP/1.1 408"),
        (WHOLE + HALF, b"HTTP/1.1 200"),
        (b"POST /early HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n", b"HTTP/1.1 200"),
    ],
    ids=["nothing", "half", "half after a whole one", "a body that nobody reads"],
)
def test_half_requests_are_closed_however_slowly_they_go_on(before, answer):
    with serving(ConnectionLimits(headers_s=1)) as port, connect(port) as raw:
        raw.sendall(before)
        answered, deadline = b"", time.monotonic() + 60
        raw.settimeout(0.1)
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                try:
                    if before:
                        raw.sendall(b"x")
                    part = raw.recv(65536)
                except ConnectionError:
                    break
                answered += part
                if not part:
                    break
        assert time.monotonic() < deadline
        assert answered.startswith(answer)


def test_requests_that_are_being_answered_or_between_two_are_left_alone():
    with serving(ConnectionLimits(headers_s=0.5)) as port, connect(port) as slow, connect(port) as idle:
        slow.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n")
        idle.sendall(WHOLE)
        assert answer_on(idle) == (200, b"")
        for _ in range(20):
            time.sleep(0.1)
            slow.sendall(b"y")
        answer = b""
        while b"y" * 20 not in answer:
            answer += slow.recv(65536) or pytest.fail(f"closed after {answer!r}")
        idle.sendall(WHOLE)
        assert answer_on(idle) == (200, b"")


@pytest.mark.bad_input
def test_half_requests_make_room_for_others():
    """The connections of all addresses together are limited; the longest idle one is closed for a new one."""
    with serving(ConnectionLimits(total=20, headers_s=600)) as port, contextlib.ExitStack() as stack:
        streaming = stack.enter_context(connect(port))
        streaming.sendall(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert streaming.recv(65536).startswith(b"HTTP/1.1 200")
        halves = [stack.enter_context(connect(port)) for _ in range(60)]
        for half in halves:
            with contextlib.suppress(ConnectionError):
                half.sendall(HALF)
        assert httpx.post(f"http://127.0.0.1:{port}/", content=b"mine", timeout=60).text == "mine"
        assert rest_of(halves[0]) == b""
        assert streaming.recv(65536), "an answer goes on"
        halves[-1].sendall(b"1\r\nContent-Length: 4\r\n\r\nlast")
        assert answer_on(halves[-1]) == (200, b"last"), "the newest stay open"


def test_a_server_that_answers_on_all_connections_refuses_another():
    with serving(ConnectionLimits(total=3)) as port, contextlib.ExitStack() as stack:
        for _ in range(3):
            streaming = stack.enter_context(connect(port))
            streaming.sendall(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert streaming.recv(65536).startswith(b"HTTP/1.1 200")
        assert rest_of(stack.enter_context(connect(port))).startswith(b"HTTP/1.1 503")


@pytest.mark.bad_input
def test_one_address_takes_no_more_than_its_share():
    addresses = [each for of_card in psutil.net_if_addrs().values() for each in of_card]
    address = next((a.address for a in addresses if a.family == socket.AF_INET and a.address[:4] != "127."), None)
    if address is None:
        pytest.skip("this machine has only loopback addresses")
    sock = socket.create_server((address, 0))
    listening = threading.Event()
    config = http_config(app, ConnectionLimits(per_address=5, headers_s=600), drain_s=1, lifespan="off")
    server = HttpServer(config, listening.set)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[sock])))
    thread.start()
    try:
        assert listening.wait(60)
        port = sock.getsockname()[1]
        with contextlib.ExitStack() as stack:
            halves = [stack.enter_context(connect(port, address, address)) for _ in range(8)]
            assert [rest_of(half) for half in halves[:3]] == [b""] * 3
            halves[-1].sendall(WHOLE)
            assert answer_on(halves[-1]) == (200, b"")
    finally:
        server.end()
        thread.join(60)
