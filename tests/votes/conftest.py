"""A registry with two versions, and a journal beside it."""

import shutil

import mlflow
import pytest
from votes_cast import Ledger, register_versions

from mlflow_finetune_plugin.votes import Journal


@pytest.fixture
def ledger(tmp_path, empty_store, monkeypatch) -> Ledger:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    register_versions(uri)
    yield Ledger(Journal("bot"), uri)
    mlflow.set_tracking_uri(before)
