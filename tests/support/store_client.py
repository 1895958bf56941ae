"""An empty MLflow store for each test that runs commands in this process."""

import shutil

import pytest
from mlflow import MlflowClient


@pytest.fixture
def client(tmp_path, monkeypatch, empty_store):
    import mlflow

    before = mlflow.get_tracking_uri()
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_FINETUNE_HOME", str(tmp_path / "home"))
    yield MlflowClient(uri)
    mlflow.set_tracking_uri(before)
