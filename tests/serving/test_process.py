"""``serving.serve``: a service for a notebook or a script."""

import json
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import mlflow
import pytest
from serving_process import CHAT, body

from mlflow_finetune_plugin import serving
from mlflow_finetune_plugin.errors import ConfigError, EngineError, TrackingError


@pytest.fixture
def settings(tmp_path, registry, monkeypatch):
    """The settings of a service of ``bot`` on a free port."""
    monkeypatch.setenv("MLFLOW_FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    mlflow.set_tracking_uri(registry.uri)
    return lambda *models: serving.ServiceSettings(models, engine="transformers", port=0, store=tmp_path / "store")


@pytest.mark.process
def test_a_service_answers_until_it_is_closed(settings):
    lines = []
    with serving.serve(settings("bot"), on_progress=lines.append) as service:
        assert service.status() == "ready"
        answer = httpx.post(service.url.removesuffix("/v1") + CHAT, json=body("bot@champion"), timeout=60)
        assert answer.headers["x-finetune-version"] == "1"
    assert service.status() == "ended"
    assert lines[0] == "waiting for the service to listen"
    assert "swapped model=bot alias=champion" in service.log.read_text()
    service.close()


ALIASES = {"champion": {"serves": None, "fault": None}, "challenger": {"serves": "2", "fault": None}}


@pytest.mark.process
def test_a_service_is_waited_for_while_one_of_its_aliases_still_loads(tmp_path):
    loading = {"status": "degraded", "aliases": list(ALIASES.values()), "engines": [{"state": "ready", "fault": None}]}
    lines = []
    with readiness_of(tmp_path, [loading, loading, {"status": "ready"}]) as (service, paths):
        service.wait_until_ready(30, lines.append)
    assert len(paths) == 3
    assert lines == ["waiting for the versions to be loaded and certified"]


@pytest.mark.process
@pytest.mark.parametrize(
    "faulty",
    [
        {"aliases": [ALIASES["challenger"], {"serves": None, "fault": "bot/1: the base has changed"}]},
        {"aliases": list(ALIASES.values()), "engines": [{"state": "starting", "fault": "it ended with code 1"}]},
    ],
    ids=["alias", "engine"],
)
def test_a_fault_of_one_alias_or_engine_does_not_hold_a_service_up(tmp_path, faulty):
    with readiness_of(tmp_path, [{"status": "degraded", **faulty}]) as (service, paths):
        service.wait_until_ready(30)
    assert len(paths) == 1


@contextmanager
def readiness_of(tmp_path, reports):
    """A running service whose /readyz gives ``reports`` one after the other, and the paths that it was asked for."""
    paths = []

    class Readiness(BaseHTTPRequestHandler):
        def do_GET(self):
            paths.append(self.path)
            content = json.dumps(reports[len(paths) - 1]).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = HTTPServer(("127.0.0.1", 0), Readiness)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield serving.RunningService(f"http://127.0.0.1:{server.server_port}/v1", tmp_path / "log", process), paths
        process.kill()
    server.shutdown()
    server.server_close()


@pytest.mark.process
def test_a_service_that_ends_is_an_error_with_its_reason(settings):
    with pytest.raises(EngineError, match=r"ended with code 2: .*nobody: the registry has no such model"):
        serving.serve(settings("nobody"))


def test_faults_of_the_settings_come_before_any_process(settings, tmp_path):
    with pytest.raises(ConfigError, match="not the name of a registered model"):
        serving.serve(settings("bot@champion"))
    assert not (tmp_path / "home").exists()


def test_a_missing_store_is_an_error_and_is_not_created(settings, tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path}/none.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    with pytest.raises(TrackingError, match=r"no MLflow tracking store at .*none\.db; fix"):
        serving.serve(settings("bot"))
    assert not (tmp_path / "none.db").exists()


@pytest.mark.process
def test_the_command_in_an_empty_folder_creates_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    command = [sys.executable, "-m", "mlflow_finetune_plugin.cli", "serve", "bot"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert "no MLflow tracking store at" in result.stderr
    assert "fix: set MLFLOW_TRACKING_URI" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.process
def test_a_server_that_does_not_answer_is_reported_and_waited_for(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    command = [sys.executable, "-m", "mlflow_finetune_plugin.cli", "serve", "bot", "--store", str(tmp_path / "store")]
    started = time.monotonic()
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        line = process.stderr.readline()
        took_s = time.monotonic() - started
        process.kill()
    assert "waiting  the tracking server http://127.0.0.1:9 does not answer" in line
    assert took_s < 10
