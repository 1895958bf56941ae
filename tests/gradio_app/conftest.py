"""A store of its own for each test of the playground that reads or moves what is registered."""

from collections.abc import Iterator

import pytest
from conftest import Workplace
from mlflow import MlflowClient


@pytest.fixture
def registry(desk: Workplace) -> Iterator[MlflowClient]:
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(desk.tracking_uri)
    yield MlflowClient(desk.tracking_uri)
    mlflow.set_tracking_uri(before)
