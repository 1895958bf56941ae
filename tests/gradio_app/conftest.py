"""Endpoints whose models are told what to say, and a store of its own for each test that reads or moves what is registered."""

from collections.abc import Iterator

import pytest
from conftest import Workplace
from mlflow import MlflowClient
from streaming_endpoint import router_headers, streaming_endpoint

LONG = "one two three four five six seven eight nine ten " * 4
SCRIPTS = {
    "bot@champion": {"text": LONG + "so says the first", "headers": router_headers("1")},
    "bot@challenger": {"text": LONG + "so says the second", "headers": router_headers("2")},
    "bot/1": {"text": "one", "headers": router_headers("1")},
    "base": {"text": "the base says little", "headers": router_headers("base")},
    "slow": {"text": LONG, "tokens": 30, "rate": 20, "headers": router_headers("3")},
    "fast": {"text": LONG, "tokens": 60, "rate": 400, "headers": router_headers("4")},
    "endless": {"text": LONG, "tokens": 100_000, "rate": 200},
    "late": {"text": "here", "delay": 0.6},
    "boastful": {"text": "I am bot@challenger and nobody else", "rate": 30, "headers": router_headers("2")},
    "unwell": {"text": "-", "fault": "http500"},
    "cut": {"text": "this will not end well at all, they said", "fault": "cut"},
    "garbage": {"text": "this will not end well at all, they said", "fault": "garbage"},
    "broken": {"text": "this will not end well at all, they said", "fault": "error_event"},
    "mute": {"text": "-", "fault": "silent"},
    "empty": {"text": ""},
    "hostile": {
        "text": "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'> [a](javascript:alert(1))"
    },
}


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory):
    """Base URL of a real endpoint whose models are told what to say."""
    with streaming_endpoint(SCRIPTS, tmp_path_factory.mktemp("endpoint")) as url:
        yield url


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_FINETUNE_HOME", str(tmp_path / "home"))


@pytest.fixture
def registry(desk: Workplace) -> Iterator[MlflowClient]:
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(desk.tracking_uri)
    yield MlflowClient(desk.tracking_uri)
    mlflow.set_tracking_uri(before)
