"""One registry with a few versions, and one service on it, for the tests that change neither for long."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from served_models import VersionMaker, registry_of_bot
from serving_process import ServingProcess, serving


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[VersionMaker]:
    """``bot``: versions 1 and 2, champion on 1, challenger on 2."""
    with registry_of_bot(tmp_path_factory.mktemp("registry"), empty_store) as made:
        yield made


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, registry: VersionMaker) -> Iterator[ServingProcess]:
    folder = tmp_path_factory.mktemp("service")
    arguments = ("--engine", "transformers", "--poll", "0.2")
    with serving(folder, registry.uri, "bot", *arguments, FINETUNE_TEST=str(folder)) as started:
        yield started
