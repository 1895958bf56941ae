"""MLflow's deployments commands and client, on real services that outlive the shell that made them."""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import mlflow
import pandas as pd
import psutil
import pytest
from forked import FORKS, run_module, start_module
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException
from served_models import QUESTIONS
from serving_process import ServingProcess, ask, free_port, wait_until

from mlflow_finetune_plugin.cli.serve.serve import serve
from mlflow_finetune_plugin.serving.deployments import _model_id, _settings
from mlflow_finetune_plugin.serving.local_services import Deployment, _wait_for_answer, alone, folder_of, serve_command


class Stranger(BaseHTTPRequestHandler):
    """Answers every request of anybody, as if all were well."""

    def do_POST(self):
        content = json.dumps({"status": "ready", "choices": [{"message": {"content": "a stranger's"}}]}).encode()
        self.send_response(200)
        for name, value in {"content-length": len(content), "x-finetune-model": "?", "x-finetune-version": "9"}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST

    def log_message(self, *told):
        """Nothing."""


@contextmanager
def stranger_at(port):
    server = ThreadingHTTPServer(("127.0.0.1", port), Stranger)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def own(tmp_path, registry, monkeypatch):
    """The environment of a user who has deployed nothing yet."""
    values = {"MLFLOW_FINETUNE_HOME": str(tmp_path / "home"), "MLFLOW_TRACKING_URI": registry.uri}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    mlflow.set_tracking_uri(registry.uri)
    yield {**os.environ, **values}
    client = get_deploy_client("finetune")
    for deployment in client.list_deployments():
        client.delete_deployment(deployment["name"])


def command(own, *arguments):
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return run_module("mlflow", ["deployments", *arguments], env=own, text=True, timeout=300, **streams)


CREATE = ("create", "-t", "finetune", "-m", "models:/bot@champion", "-C", "engine=transformers", "-C", "poll=0.2")


@pytest.mark.process
def test_a_deployment_lives_through_every_verb(own, tmp_path, registry):
    created = command(own, *CREATE, "--name", "prod", "-C", f"store={tmp_path / 'store'}")
    assert created.returncode == 0, created.stdout + created.stderr
    assert "finetune deployment prod is created" in created.stdout
    listed = command(own, "list", "-t", "finetune")
    assert "prod" in listed.stdout
    client = get_deploy_client("finetune")
    told = client.get_deployment("prod")
    assert (told["status"], told["model"], told["flavor"]) == ("ready", "bot@champion", "finetune")
    folder = folder_of("prod")
    assert {(folder / file).stat().st_mode & 0o777 for file in ("deployment.json", "service.log")} == {0o600}
    with pytest.raises(MlflowException, match="exists already"):
        client.create_deployment("prod", "models:/bot@champion", config={"engine": "transformers"})

    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"prompt": question, "temperature": 0, "max_tokens": 8} for question in QUESTIONS]))
    predicted = command(own, "predict", "-t", "finetune", "--name", "prod", "-I", str(rows))
    assert predicted.returncode == 0, predicted.stderr
    answers = json.loads(predicted.stdout)["predictions"]
    assert [answer["version"] for answer in answers] == ["1"] * 4
    frame = client.predict("prod", pd.DataFrame({"prompt": list(QUESTIONS), "temperature": 0, "max_tokens": 8}))
    assert frame["predictions"] == answers
    chunks = list(client.predict_stream("prod", {"prompt": QUESTIONS[0], "temperature": 0, "max_tokens": 8}))
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert text == answers[0]["answer"]

    before = psutil.Process(
        json.loads((tmp_path / "home" / "deployments" / "prod" / "deployment.json").read_text())["pid"]
    )
    updated = command(own, "update", "-t", "finetune", "--name", "prod", "-m", "models:/bot/2")
    assert updated.returncode == 0, updated.stderr
    assert not before.is_running()
    assert client.get_deployment("prod")["url"] == told["url"], "who knows its address keeps it"
    assert client.predict("prod", [QUESTIONS[0]])["predictions"][0]["version"] == "2"
    assert client.get_deployment("prod")["config"]["engine"] == "transformers"

    failing = command(own, "update", "-t", "finetune", "--name", "prod", "-m", "models:/bot/9999")
    assert failing.returncode != 0
    assert "the deployment serves models:/bot/2 as before" in failing.stdout + failing.stderr
    assert client.predict("prod", [QUESTIONS[0]])["predictions"][0]["version"] == "2"
    assert client.get_deployment("prod")["url"] == told["url"]

    serving = json.loads((tmp_path / "home" / "deployments" / "prod" / "deployment.json").read_text())["pid"]
    with stranger_at(0) as taken, pytest.raises(MlflowException, match=f"port {taken} of 127.0.0.1 .* already in use"):
        client.update_deployment("prod", config={"port": str(taken)})
    assert psutil.Process(serving).is_running()
    assert client.get_deployment("prod")["status"] == "ready"

    deleted = command(own, "delete", "-t", "finetune", "--name", "prod")
    assert deleted.returncode == 0, deleted.stderr
    assert client.list_deployments() == []
    with pytest.raises(MlflowException, match="no deployment 'prod'"):
        client.get_deployment("prod")
    client.delete_deployment("prod")


@pytest.mark.process
def test_a_dead_service_is_told_as_dead(own, tmp_path):
    client = get_deploy_client("finetune")
    (tmp_path / "home" / "deployments" / "prod").mkdir(parents=True)  # as a create that was killed leaves it
    with alone("prod"), pytest.raises(MlflowException, match="by another process"):
        client.create_deployment("prod", "models:/bot/1")
    client.create_deployment(
        "prod", "models:/bot/1", config={"engine": "transformers", "store": str(tmp_path / "store")}
    )
    state = json.loads((tmp_path / "home" / "deployments" / "prod" / "deployment.json").read_text())
    psutil.Process(state["pid"]).kill()
    psutil.Process(state["pid"]).wait(20)
    assert client.get_deployment("prod")["status"] == "dead"
    with stranger_at(state["port"]):
        assert client.get_deployment("prod")["status"] == "dead"
        with pytest.raises(MlflowException, match="deployment 'prod' is dead; fix: update or delete it"):
            client.predict("prod", [QUESTIONS[0]])
        with pytest.raises(MlflowException, match="is dead"):
            next(client.predict_stream("prod", QUESTIONS[0]))
    again = client.update_deployment("prod")
    assert again["status"] in ("ready", "degraded")  # a second alias may not be loaded yet
    assert again["url"] == f"http://127.0.0.1:{state['port']}/v1"
    wait_until(lambda: client.get_deployment("prod")["status"] == "ready")


def test_a_port_of_somebody_else_is_no_deployment(own, tmp_path):
    client = get_deploy_client("finetune")
    given = {"engine": "transformers", "store": str(tmp_path / "store")}
    with stranger_at(0) as taken:
        with pytest.raises(MlflowException, match=f"port {taken} of 127.0.0.1 cannot be listened on: Address already"):
            client.create_deployment("prod", "models:/bot/1", config={**given, "port": str(taken)})
        assert client.list_deployments() == []


@pytest.mark.process
def test_an_answer_counts_only_from_the_process_that_was_started(tmp_path):
    """The port can be taken after it was found free: by one that answers, while the own process does not listen."""
    silent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with stranger_at(0) as taken:
            started = psutil.Process(silent.pid).create_time()
            made = Deployment("prod", "models:/bot/1", "bot/1", "127.0.0.1", taken, silent.pid, started, "sqlite://")
            assert made.status() == "not ready"
            with pytest.raises(MlflowException, match="gives no answer: it does not listen"):
                _wait_for_answer(made, silent, tmp_path / "service.log", timeout_s=1)
            with pytest.raises(MlflowException, match=f"does not listen at port {taken}; fix"):
                made.answering()
    finally:
        silent.kill()
        silent.wait()


@pytest.mark.process
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_run_local_serves_in_the_foreground_until_a_signal(own, tmp_path, sent):
    port, log = free_port(), tmp_path / "run-local.log"
    words = ["run-local", "-t", "finetune", "--name", "here", "-m", "models:/bot@champion"]
    options = ["-C", f"port={port}", "-C", f"store={tmp_path / 'store'}", "-C", "engine=transformers"]
    with log.open("wb") as out:
        started = start_module(
            "mlflow", ["deployments", *words, *options], env=own | {FORKS: "no"}, stdout=out, stderr=out
        )
    local = ServingProcess(started, port, log, tmp_path / "store")
    try:
        local.wait_for("ready")
        (served,) = psutil.Process(started.pid).children()
        assert ask(local, "bot@champion").headers["x-finetune-version"] == "1"
        assert local.end(sent) == 0
        assert not served.is_running()
    finally:
        started.kill()


@pytest.mark.process
def test_help_tells_the_options(own):
    told = command(own, "help", "-t", "finetune")
    assert told.returncode == 0
    for word in ("models:/NAME@ALIAS", "engine", "api_key_file", "max_rank"):
        assert word in told.stdout


@pytest.mark.process
@pytest.mark.parametrize(
    ("uri", "config", "said"),
    [
        ("models:/nobody@champion", {}, "the registry has no such model"),
        ("models:/bot/99", {}, "no such version"),
        ("models:/bot@nobody", {}, "has no alias 'nobody'"),
        ("runs:/1/model", {}, "not a valid model name"),
        ("models:/bot/1", {"prot": "1"}, "unknown option 'prot'"),
        ("models:/bot/1", {"max_loras": "abc"}, "max_loras 'abc': not valid; fix: -C max_loras=NUMBER"),
        ("models:/bot/1", {"port": "abc"}, "port 'abc': not valid; fix: -C port=NUMBER, from 1 to 65535"),
        ("models:/bot/1", {"port": "65536"}, "port '65536': not valid; fix"),
        ("models:/bot/1", {"timeout": "abc"}, "timeout 'abc': not valid; fix: -C timeout=SECONDS"),
        ("models:/bot/1", {"timeout": "nan"}, "timeout 'nan': not valid; fix"),
        (
            "models:/bot/1",
            {"trust_remote_code": "yes"},
            "trust_remote_code 'yes': not valid; fix: -C trust_remote_code=true or",
        ),
        ("models:/bot/1", {"engine": "tgi"}, "engine 'tgi': not valid; fix: -C engine=auto or vllm or transformers"),
        ("models:/bot/1", {"host": "0.0.0.0"}, "other machines need API keys"),
    ],
)
def test_what_cannot_be_deployed_is_told_and_leaves_nothing(own, tmp_path, uri, config, said):
    client = get_deploy_client("finetune")
    given = {"engine": "transformers", "store": str(tmp_path / "store"), **config}
    with pytest.raises(MlflowException, match=said):
        client.create_deployment("prod", uri, config=given)
    assert client.list_deployments() == []


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "x" * 101])
def test_names_cannot_leave_their_folder(own, name):
    with pytest.raises(MlflowException, match="fix: use up to 100 letters, digits"):
        get_deploy_client("finetune").create_deployment(name, "models:/bot/1")


def test_model_uris():
    assert _model_id("models:/bot@champion") == "bot@champion"
    assert _model_id("models:/bot/3") == "bot/3"
    assert _model_id("models:/bot") == "bot"


@pytest.mark.parametrize(("given", "is_flagged"), [("true", True), (True, True), ("false", False), (False, False)])
def test_code_of_a_base_is_trusted_where_that_is_said(given, is_flagged):
    words = serve_command("bot@champion", _settings({"trust_remote_code": given, "max_rank": 8}))
    options = serve.make_context("serve", words[words.index("serve") + 1 :]).params
    assert (options["trust_remote_code"], options["max_rank"], options["models"]) == (is_flagged, 8, ("bot",))
