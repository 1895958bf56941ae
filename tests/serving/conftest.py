"""One registry with a few versions, and one service on it, for the tests that change neither for long."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from served_models import VersionMaker
from serving_process import ServingProcess, serving


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[VersionMaker]:
    """``bot``: versions 1 and 2, champion on 1, challenger on 2."""
    folder = tmp_path_factory.mktemp("registry")
    shutil.copy(empty_store, folder / "mlflow.db")
    before = mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        maker = VersionMaker(f"sqlite:///{folder}/mlflow.db")
        for seed in (1, 2):
            maker.make("bot", seed=seed)
        maker.client.set_registered_model_alias("bot", "champion", "1")
        yield maker
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, registry: VersionMaker) -> Iterator[ServingProcess]:
    folder = tmp_path_factory.mktemp("service")
    arguments = ("--engine", "transformers", "--poll", "0.2")
    with serving(folder, registry.uri, "bot", *arguments, FINETUNE_TEST=str(folder)) as started:
        yield started
