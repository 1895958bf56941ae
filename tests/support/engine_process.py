"""The engine as its users have it: a process, spoken to over HTTP."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEY = "test-key"
EMBEDDED = Path(__file__).resolve().parents[2] / "mlflow_finetune_plugin" / "embedded_base"


@dataclass
class Reply:
    status: int
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Stream:
    """Events as they come; ``leave`` hangs up."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self._connection, self._response = connection, response
        self.status = response.status

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for line in self._response:
            if line.startswith(b"data: "):
                data = line[6:].strip()
                if data == b"[DONE]":
                    return
                yield json.loads(data)

    def leave(self) -> None:
        self._response.close()
        self._connection.close()


@dataclass
class EngineProcess:
    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def ask(self, method: str, path: str, body: Any = None, *, key: str | None = KEY) -> Reply:
        connection, response = self._send(method, path, body, key)
        try:
            return Reply(response.status, response.read().decode())
        finally:
            connection.close()

    def post(self, path: str, **body: Any) -> Reply:
        return self.ask("POST", path, body)

    def stream(self, path: str, **body: Any) -> Stream:
        return Stream(*self._send("POST", path, {"stream": True, **body}, KEY))

    def send(self, path: str, **body: Any) -> http.client.HTTPConnection:
        """Asks, and does not wait for the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", path, json.dumps(body), {"Authorization": f"Bearer {KEY}"})
        return connection

    def wait_until_closed(self, timeout_s: float = 30) -> None:
        """Until no new connection is accepted."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            try:
                self.load()
            except ConnectionError:
                return
        raise AssertionError("the engine still accepts connections")

    def load(self) -> int:
        return int(self.ask("GET", "/load").json["server_load"])

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait_for_load(self, wanted: int, timeout_s: float = 20) -> None:
        end = time.monotonic() + timeout_s
        while (found := self.load()) != wanted:
            assert time.monotonic() < end, f"server_load is {found}, expected {wanted}"
            time.sleep(0.01)

    def _send(
        self, method: str, path: str, body: Any, key: str | None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        return connection, connection.getresponse()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def write_config(folder: Path, **settings: Any) -> Path:
    model = settings.pop("model", EMBEDDED)
    config = {
        "model": str(model),
        "served_model_name": "base",
        "tokenizer": str(model),
        "chat_template": None,
        "dtype": "float32",
        "quantization": None,
        "attn_implementation": None,
        "trust_remote_code": False,
        "host": "127.0.0.1",
        "port": free_port(),
        "max_model_len": 512,
        "max_num_seqs": 8,
    } | settings
    path = folder / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def start(config: Path, log: Path, **environment: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "mlflow_finetune_plugin.serving.transformers_engine", str(config)],
            env={**os.environ, "FINETUNE_ENGINE_KEY": KEY, **environment},
            stdout=out,
            stderr=subprocess.STDOUT,
        )


@contextmanager
def engine(folder: Path, **settings: Any) -> Iterator[EngineProcess]:
    """A running engine, ready. Ended with SIGTERM, which must give exit status 0."""
    config = write_config(folder, **settings)
    log = folder / "engine.log"
    running = EngineProcess(start(config, log), json.loads(config.read_text())["port"], log)
    try:
        _wait_until_ready(running)
        yield running
        if running.process.poll() is None:
            running.terminate()
        assert running.process.wait(timeout=40) == 0, log.read_text()
    finally:
        running.process.kill()
        running.process.wait()


def _wait_until_ready(engine: EngineProcess) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and engine.process.poll() is None:
        try:
            if engine.ask("GET", "/health", key=None).status == 200:
                return
        except ConnectionRefusedError:
            time.sleep(0.1)
    raise AssertionError(f"the engine is not ready:\n{engine.log.read_text()}")
