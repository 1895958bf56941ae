"""What reaches MLflow, by which attempt, and which failures are worth waiting for."""

import math
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, RESOURCE_DOES_NOT_EXIST, TEMPORARILY_UNAVAILABLE

from mlflow_finetune_plugin.errors import TrackingError
from mlflow_finetune_plugin.jobs.report import Report, ReportReader
from mlflow_finetune_plugin.jobs.run_record import RunRecord, reap_expired
from mlflow_finetune_plugin.store.clients import check_store_answers, check_store_exists, is_refusal
from mlflow_finetune_plugin.store.names import ATTEMPT_TAG, HEARTBEAT_TAG, HOST_TAG, JOB_TAG, STATUS_TAG

pytestmark = pytest.mark.store


@pytest.fixture
def client(tmp_path, empty_store) -> MlflowClient:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")


@pytest.fixture
def experiment(client, tmp_path) -> str:
    return client.create_experiment("tests", artifact_location=str(tmp_path / "artifacts"))


@pytest.fixture
def record(client, experiment) -> RunRecord:
    return RunRecord(client, client.create_run(experiment).info.run_id, attempt=1)


def carry(record: RunRecord, path) -> None:  # type: ignore[no-untyped-def]
    for event in ReportReader(path).new_events():
        record.apply(event)


def http_error(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status}", response=response)


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (MlflowException("gone", RESOURCE_DOES_NOT_EXIST), True),
        (MlflowException.invalid_parameter_value("bad"), True),
        (MlflowException("oops", INTERNAL_ERROR), False),
        (MlflowException("later", TEMPORARILY_UNAVAILABLE), False),
        (ConnectionError("refused"), False),
        (http_error(403), True),
        (http_error(413), True),
        (http_error(429), False),
        (http_error(503), False),
        (requests.ConnectionError("no route"), False),
    ],
    ids=repr,
)
def test_refusals_are_told_from_outages(error, refused):
    assert is_refusal(error) is refused


def test_real_refusal_of_a_real_store(client, record):
    record._client.log_param(record.run_id, "a", "1")
    with pytest.raises(MlflowException) as caught:
        record._client.log_param(record.run_id, "a", "2")
    assert is_refusal(caught.value)
    with pytest.raises(MlflowException) as caught:
        client.get_run("0" * 32)
    assert is_refusal(caught.value)


def test_every_event_is_carried_over(client, record, tmp_path):
    report = Report(tmp_path / "report.jsonl")
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"png")
    report.stage("plan", "lora")
    report.note("odd")
    report.progress(1, 3, "steps", stage="train")
    report.event("first_step")
    report.metrics({"train/loss": 2.5}, step=1)
    report.metrics({"train/loss": 1.5}, step=2)
    report.params({"options.rank": 4, "training.bf16": False})
    report.tags({"finetune.adaptation": "lora"})
    report.artifact(picture, "plots")
    report.datasets(
        [{"name": "rows", "digest": "abc", "source": "{}", "profile": "{}", "context": "train"}],
    )
    report.error("reason")
    report.result(summary="done")
    carry(record, tmp_path / "report.jsonl")
    run = client.get_run(record.run_id)
    assert [(m.step, m.value) for m in client.get_metric_history(record.run_id, "train/loss")] == [(1, 2.5), (2, 1.5)]
    assert run.data.params == {"options.rank": "4", "training.bf16": "False"}
    assert run.data.tags["finetune.adaptation"] == "lora"
    assert [a.path for a in client.list_artifacts(record.run_id, "plots")] == ["plots/picture.png"]
    (entry,) = run.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest, entry.tags[0].value) == ("rows", "abc", "train")
    assert run.info.status == "RUNNING"


def test_metrics_that_are_no_numbers_stay_so(client, record, tmp_path):
    Report(tmp_path / "report.jsonl").metrics({"nan": math.nan, "high": math.inf, "low": -math.inf, "one": 1.0}, step=3)
    carry(record, tmp_path / "report.jsonl")
    values = client.get_run(record.run_id).data.metrics
    assert math.isnan(values["nan"])
    assert values["high"] > 1e300  # a SQL store keeps infinity as the largest number
    assert values["low"] < -1e300
    assert values["one"] == 1.0


def test_long_values_are_shortened_with_a_pointer(client, record, tmp_path):
    report = Report(tmp_path / "report.jsonl")
    report.params({"data.train": "x" * 10_000, **{f"p{i}": i for i in range(250)}})
    report.tags({"note": "y" * 10_000})
    carry(record, tmp_path / "report.jsonl")
    data = client.get_run(record.run_id).data
    assert len(data.params) == 251
    assert data.params["data.train"].endswith("(whole in finetune/config.json)")
    assert len(data.params["data.train"]) <= 6000
    assert len(data.tags["note"]) <= 5000


def test_carrying_the_same_events_twice_changes_nothing(client, record, tmp_path):
    """A supervisor that died after writing and before noting it repeats the event."""
    report = Report(tmp_path / "report.jsonl")
    report.params({"a": 1})
    report.tags({"b": "2"})
    report.metrics({"c": 3.0}, step=1)
    carry(record, tmp_path / "report.jsonl")
    carry(record, tmp_path / "report.jsonl")
    data = client.get_run(record.run_id).data
    assert (data.params["a"], data.tags["b"], data.metrics["c"]) == ("1", "2", 3.0)
    assert len(client.get_metric_history(record.run_id, "c")) == 1


def test_end_is_written_last_with_its_files(client, record, tmp_path):
    log = tmp_path / "worker.log"
    log.write_text("lines")
    record.finish("FAILED", "out of memory", [(log, "logs"), (tmp_path / "missing.txt", "logs")])
    run = client.get_run(record.run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags[STATUS_TAG] == "out of memory"
    assert [a.path for a in client.list_artifacts(record.run_id, "logs")] == ["logs/worker.log"]


def test_later_attempt_silences_the_earlier(client, record):
    client.set_tag(record.run_id, ATTEMPT_TAG, "2")
    assert not record.is_mine()
    record.finish("FAILED", "a late word", [])
    run = client.get_run(record.run_id)
    assert run.info.status == "RUNNING"
    assert STATUS_TAG not in run.data.tags
    later = RunRecord(client, record.run_id, attempt=2)
    later.finish("FINISHED", "done", [])
    assert client.get_run(record.run_id).info.status == "FINISHED"


def test_heartbeat_is_now(client, record):
    record.heartbeat()
    assert abs(time.time() - int(client.get_run(record.run_id).data.tags[HEARTBEAT_TAG])) < 30


@pytest.fixture
def runs(client, experiment, tmp_path, monkeypatch) -> dict[str, str]:
    """Runs by what they are; it is 10,000 s now."""
    monkeypatch.setenv("MLFLOW_FINETUNE_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "jobs" / "job-here").mkdir(parents=True)
    kinds = {
        "silent elsewhere": {HEARTBEAT_TAG: "9000", HOST_TAG: "elsewhere"},
        "alive elsewhere": {HEARTBEAT_TAG: "9900", HOST_TAG: "elsewhere"},
        "silent here": {HEARTBEAT_TAG: "9000", HOST_TAG: socket.gethostname(), JOB_TAG: "job-here"},
        "ended elsewhere": {HEARTBEAT_TAG: "9000", HOST_TAG: "elsewhere"},
        "not ours": {},
    }
    run_ids = {kind: client.create_run(experiment, tags=tags).info.run_id for kind, tags in kinds.items()}
    client.set_terminated(run_ids["ended elsewhere"], "FINISHED")
    return run_ids


@pytest.mark.fault
def test_only_silent_runs_of_other_hosts_are_ended(client, experiment, runs):
    looked = reap_expired(client, [experiment], now_s=10_000, act=False)
    assert [run_id for run_id, _ in looked] == [runs["silent elsewhere"]]
    assert client.get_run(runs["silent elsewhere"]).info.status == "RUNNING"
    ((run_id, reason),) = reap_expired(client, [experiment], now_s=10_000)
    assert run_id == runs["silent elsewhere"]
    assert reason == "no sign of life from elsewhere for 17 minutes: the host or its network died"
    states = {kind: client.get_run(run_id).info.status for kind, run_id in runs.items()}
    assert states == {
        "silent elsewhere": "FAILED",
        "alive elsewhere": "RUNNING",
        "silent here": "RUNNING",
        "ended elsewhere": "FINISHED",
        "not ours": "RUNNING",
    }
    assert client.get_run(run_id).data.tags[STATUS_TAG] == reason
    assert reap_expired(client, [experiment], now_s=10_000) == []


def test_more_runs_than_a_page_holds_are_all_ended(client, experiment):
    for _ in range(205):
        client.create_run(experiment, tags={HEARTBEAT_TAG: "1", HOST_TAG: "elsewhere"})
    assert len(reap_expired(client, [experiment], now_s=10_000)) == 205
    assert reap_expired(client, [experiment], now_s=10_000) == []


def test_a_store_that_does_not_exist_is_an_error_and_is_not_created(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for uri in ("sqlite:///mlflow.db", f"sqlite:///{tmp_path}/none.db", "mlruns", f"file://{tmp_path}/mlruns"):
        with pytest.raises(TrackingError, match=r"no MLflow tracking store at .*; fix: set MLFLOW_TRACKING_URI"):
            check_store_exists(uri)
    assert not list(tmp_path.iterdir())
    (tmp_path / "my store.db").touch()
    for uri in (f"sqlite:///{tmp_path}/my%20store.db", "sqlite:///my store.db", str(tmp_path), "http://x", "sqlite://"):
        check_store_exists(uri)


def test_a_server_that_does_not_answer_is_reported_within_seconds():
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        port = deaf.getsockname()[1]
        for uri in (f"http://me:secret@127.0.0.1:{port}", f"postgresql://127.0.0.1:{port}/runs"):
            with pytest.raises(TrackingError, match=r"does not answer: .*refused.*; fix: start it") as refused:
                check_store_answers(uri)
            assert "secret" not in str(refused.value)
        deaf.listen()
        started = time.monotonic()
        with pytest.raises(TrackingError, match="timed out"):
            check_store_answers(f"http://127.0.0.1:{port}", timeout_s=0.2)
        assert time.monotonic() - started < 2
        check_store_answers(f"postgresql://127.0.0.1:{port}/runs")
    check_store_answers("sqlite:///mlflow.db")


def test_a_server_that_refuses_the_request_answers():
    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(401)

        def log_message(self, *_):
            """Keep the test's output clean."""

    with HTTPServer(("127.0.0.1", 0), Refuses) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        check_store_answers(f"http://127.0.0.1:{server.server_port}/")
        thread.join()


@pytest.mark.process
def test_the_tracking_uri_is_known_without_importing_mlflow(tmp_path):
    code = (
        "import sys; from mlflow_finetune_plugin.store.clients import current_tracking_uri as uri;"
        "print(uri(), 'mlflow' in sys.modules)"
    )

    def printed(**environment):
        inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        command = [sys.executable, "-c", code]
        return subprocess.check_output(command, cwd=tmp_path, env={**inherited, **environment}, text=True).split()

    assert printed() == ["sqlite:///mlflow.db", "False"]
    assert printed(MLFLOW_TRACKING_URI="http://x") == ["http://x", "False"]
    (tmp_path / "mlruns/0").mkdir(parents=True)
    (tmp_path / "mlruns/0/meta.yaml").touch()
    assert printed() == ["mlruns", "False"]
