"""An OpenAI API that streams what its models are told to say, at the pace they are told: a process, for many clients at once.

Each model is a script: ``{"text": ..., "tokens": N, "rate": tokens a second, "delay": s, "headers": {...}, "fault": ..., "sees": ...}``.
``text`` is repeated or cut to ``tokens`` words; ``piece``: tokens of so many characters instead of words; ``fault``: ``http500``, ``garbage``, ``cut`` (breaks off half way),
``silent`` (never says anything), ``error_event``. Run: ``python streaming_endpoint.py PORT SCRIPTS.json``.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

BASE_DIGEST = "b" * 64


def router_headers(version: str, model: str = "bot") -> dict[str, str]:
    """As our router signs an answer; the request's id is added to each."""
    return {
        "x-finetune-model": model,
        "x-finetune-version": version,
        "x-finetune-adapter-digest": "" if version == "base" else f"{version:a>64}",
        "x-finetune-base-digest": BASE_DIGEST,
    }


class StreamingEndpoint:
    def __init__(self, scripts: dict[str, dict]) -> None:
        self.scripts = scripts
        self.asked: list[dict] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                length = next((int(x.split(":")[1]) for x in lines if x.lower().startswith("content-length:")), 0)
                body = await reader.readexactly(length) if length else b""
                path = lines[0].split()[1]
                if path == "/v1/models":
                    data = [
                        {"id": name, "owned_by": "mlflow-finetune", **({"sees": True} if script.get("sees") else {})}
                        for name, script in self.scripts.items()
                    ]
                    await _send(writer, 200, {"object": "list", "data": data})
                elif path == "/asked":
                    await _send(writer, 200, self.asked)
                elif path == "/forget":
                    self.asked.clear()
                    await _send(writer, 200, {})
                else:
                    await self._chat(json.loads(body), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def _chat(self, asked: dict, writer: asyncio.StreamWriter) -> None:
        script = self.scripts.get(asked["model"])
        note = {"at": time.time(), **asked}
        self.asked.append(note)
        if script is None or script.get("fault") == "http500":
            code = 404 if script is None else 500
            await _send(writer, code, {"error": {"message": f"{asked['model']} is not well", "type": "x"}})
            return
        headers = {**script.get("headers", {}), "x-finetune-request-id": uuid.uuid4().hex}
        told = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(
            f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n{told}\r\n".encode()
        )
        await asyncio.sleep(script.get("delay", 0.0))
        if script.get("fault") == "silent":
            await asyncio.sleep(3600)
        words = list(_words(script["text"], script.get("tokens"), script.get("piece")))
        rate, start = script.get("rate"), time.monotonic()
        for number, word in enumerate(words):
            if rate:
                wait = start + number / rate - time.monotonic()
                if wait > 0:
                    await asyncio.sleep(wait)
            if script.get("fault") == "cut" and number > len(words) / 2:
                writer.transport.abort()
                raise ConnectionError
            if script.get("fault") == "error_event" and number > len(words) / 2:
                _event(writer, {"error": {"message": f"the engine of {asked['model']} broke off"}})
                break
            if script.get("fault") == "garbage" and number > len(words) / 2:
                writer.write(_chunk(b"data: {oops\n\n"))
                break
            writer.write(_word_event(word))
            if writer.transport.is_closing():
                note["hung_up"] = True
                raise ConnectionError
            await writer.drain()
        else:
            _event(writer, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            usage = {"prompt_tokens": len(str(asked["messages"])) // 4, "completion_tokens": len(words)}
            _event(writer, {"choices": [], "usage": usage})
            writer.write(_chunk(b"data: [DONE]\n\n"))
        writer.write(b"0\r\n\r\n")
        await writer.drain()


def _words(text: str, tokens: int | None, piece: int | None) -> Iterator[str]:
    words = text.split(" ")
    spaced = [words[0], *(f" {word}" for word in words[1:])]
    if piece is not None:
        spaced = [text[place : place + piece] for place in range(0, len(text), piece)]
    return iter(spaced) if tokens is None else itertools.islice(itertools.cycle([*spaced[:1], *spaced[1:]]), tokens)


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


@lru_cache(maxsize=10_000)
def _word_event(word: str) -> bytes:
    """Made once: with many clients this process must not be what is slow."""
    return _event_chunk({"choices": [{"index": 0, "delta": {"content": word}}]})


def _event_chunk(told: dict) -> bytes:
    return _chunk(b"data: " + json.dumps(told).encode() + b"\n\n")


def _event(writer: asyncio.StreamWriter, told: dict) -> None:
    writer.write(_event_chunk(told))


async def _send(writer: asyncio.StreamWriter, code: int, told: object) -> None:
    data = json.dumps(told).encode()
    writer.write(
        f"HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data
    )
    await writer.drain()


class EndpointProcess:
    """It can go and come back, at the same address."""

    def __init__(self, scripts: Mapping[str, dict], folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._scripts = folder / f"scripts-{self.port}.json"
        self._scripts.write_text(json.dumps(scripts))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen([sys.executable, __file__, str(self.port), str(self._scripts)])
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise AssertionError(f"nobody listens on {self.port}")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@contextmanager
def streaming_endpoint(scripts: Mapping[str, dict], folder: Path) -> Iterator[str]:
    """As a process; its base URL."""
    process = EndpointProcess(scripts, folder)
    process.start()
    try:
        yield process.url
    finally:
        process.kill()


async def _main(port: int, scripts: dict[str, dict]) -> None:
    server = await asyncio.start_server(StreamingEndpoint(scripts).serve, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())))
