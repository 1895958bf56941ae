"""What the benchmarks of serving share: a scratch registry of versions with random weights, and their first options."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def engine_options(doc: str) -> argparse.ArgumentParser:
    """A parser with ``--engine``, told by the first line of ``doc``."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--engine", default="vllm", choices=("vllm", "transformers"))
    return parser


@dataclass(frozen=True)
class ScratchRegistry:
    """``versions``: numbers of the model ``bot``; champion means the first."""

    folder: Path
    uri: str
    client: Any
    versions: list[str]


@contextmanager
def scratch_registry(count: int, **settings: Any) -> Iterator[ScratchRegistry]:
    """In a new folder, which is the current one while this lasts; ``settings``: of each adapter."""
    from served_models import VersionMaker

    before = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        try:
            uri = f"sqlite:///{scratch}/mlflow.db"
            maker = VersionMaker(uri)
            versions = [maker.make("bot", seed=seed, **settings) for seed in range(count)]
            maker.client.set_registered_model_alias("bot", "champion", versions[0])
            maker.client.delete_registered_model_alias("bot", "challenger")
            yield ScratchRegistry(Path(scratch), uri, maker.client, versions)
        finally:
            os.chdir(before)
