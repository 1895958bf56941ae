"""The playground as people have it: the real command over two scripted endpoints, votes kept in a real MLflow store."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import mlflow
from conftest import free_port, wait_for, write_rows
from streaming_endpoint import EndpointProcess
from votes_cast import register_versions

from mlflow_finetune_plugin.votes import CastVote, Journal

PROMPTS = [
    {"id": number, "prompt": f"set question {number}", "reference": f"the wanted answer {number}"}
    for number in range(1, 5)
]


@dataclass
class Stand:
    """``endpoint`` serves most models, ``other`` is the second one."""

    url: str
    endpoint: EndpointProcess
    other: EndpointProcess
    folder: Path
    tracking_uri: str

    def votes(self, asked: str) -> list[CastVote]:
        """What the journal holds of turns that asked this, every revision, oldest first."""
        journal = Journal("bot", self.folder / "home" / "votes" / "bot")
        return [entry.vote for entry in journal.entries() if entry.vote.turn.messages[-1]["content"] == asked]

    def asked(self) -> list[dict[str, Any]]:
        """What the first endpoint was asked since ``forget``."""
        return list(httpx.get(self.endpoint.url.removesuffix("/v1") + "/asked", trust_env=False).json())

    def forget(self) -> None:
        httpx.get(self.endpoint.url.removesuffix("/v1") + "/forget", trust_env=False)


@contextmanager
def playground_stand(
    folder: Path,
    empty_store: Path,
    scripts: Mapping[str, Any],
    other_scripts: Mapping[str, Any],
    arguments: Sequence[str] = (),
) -> Iterator[Stand]:
    """Versions 1 (champion) and 2 (challenger) of ``bot`` are registered; the set ``questions`` can be walked."""
    shutil.copy(empty_store, folder / "mlflow.db")
    uri, before = f"sqlite:///{folder / 'mlflow.db'}", mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)  # a store without a server looks up logged models where the process tracks
    register_versions(uri)
    mlflow.set_tracking_uri(before)
    prompts = write_rows(folder / "questions.jsonl", PROMPTS)
    with ExitStack() as stack:
        endpoint, other = (EndpointProcess(told, folder) for told in (scripts, other_scripts))
        for one in (endpoint, other):
            one.start()
            stack.callback(one.kill)
        given = [
            "--model",
            "bot",
            "--endpoint",
            endpoint.url,
            "--endpoint",
            other.url,
            "--prompts",
            str(prompts),
            *arguments,
        ]
        url = stack.enter_context(playground_command(folder, uri, *given))
        yield Stand(url, endpoint, other, folder, uri)


@contextmanager
def playground_command(folder: Path, tracking_uri: str, *arguments: str, listens_in_s: float = 240) -> Iterator[str]:
    """``mlflow-finetune playground`` until the end; its address once it listens."""
    log = folder / "playground.log"
    own = {"MLFLOW_TRACKING_URI": tracking_uri, "MLFLOW_REGISTRY_URI": tracking_uri}
    own |= {"MLFLOW_FINETUNE_HOME": str(folder / "home"), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "mlflow_finetune_plugin.cli", "playground", "--port", str(free_port())]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, *arguments], cwd=folder, env={**os.environ, **own}, stdout=out, stderr=out
        )

    def address() -> str | None:
        assert process.poll() is None, log.read_text()[-3000:]
        found = re.search(r"playground  (http://\S+)", log.read_text())
        return found[1] if found else None

    try:
        yield wait_for(address, listens_in_s, "page")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()[-3000:]
        said = log.read_text()
        assert "Traceback" not in said, said[-3000:]
    finally:
        process.kill()
        process.wait()
