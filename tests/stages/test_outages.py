"""Waiting for a tracking server: how long, for what, and what is never repeated. The clock is the test's."""

import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, PERMISSION_DENIED

from mlflow_finetune_plugin.errors import ReloadError, TrackingError
from mlflow_finetune_plugin.jobs.report import Report, ReportReader
from mlflow_finetune_plugin.stages import outages
from mlflow_finetune_plugin.stages.outages import with_patience


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """Seconds slept; time passes only so."""
    slept: list[float] = []
    monkeypatch.setattr(outages.time, "monotonic", lambda: sum(slept))
    monkeypatch.setattr(outages.time, "sleep", slept.append)
    return slept


@pytest.fixture
def report(tmp_path) -> Report:
    return Report(tmp_path / "report.jsonl")


class Server:
    """Fails with the given errors, one a call, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def test_answer_comes_at_once_and_without_a_note(waits, report, tmp_path):
    assert with_patience(Server(), report) == "answer"
    assert waits == []
    assert list(ReportReader(tmp_path / "report.jsonl").new_events()) == []


@pytest.mark.parametrize(
    "outage",
    [
        MlflowException("boom", INTERNAL_ERROR),
        ConnectionError("reset"),
        TimeoutError("slow"),
        requests.ConnectionError("no route"),
    ],
    ids=repr,
)
def test_outage_is_waited_for_longer_each_time_and_told_once(outage, waits, report, tmp_path):
    server = Server(*[outage] * 7)
    assert with_patience(server, report) == "answer"
    assert waits == [1, 2, 4, 8, 16, 30, 30]
    notes = [event["text"] for event in ReportReader(tmp_path / "report.jsonl").new_events()]
    assert notes == ["the tracking server is away; waiting for it"]


@pytest.mark.fault
def test_patience_ends(waits, report):
    server = Server(*[ConnectionError("reset")] * 1000)
    with pytest.raises(TrackingError, match="away for 2 minutes: reset"):
        with_patience(server, report, patience_s=120)
    assert 120 < sum(waits) <= 150


def test_refusal_is_not_repeated(waits, report):
    server = Server(MlflowException("not yours", PERMISSION_DENIED))
    with pytest.raises(TrackingError, match=r"refused: .*not yours"):
        with_patience(server, report)
    assert server.calls == 1


def test_own_error_is_not_repeated(waits, report):
    server = Server(ReloadError("differs"))
    with pytest.raises(ReloadError):
        with_patience(server, report)
    assert server.calls == 1


@pytest.mark.parametrize(("code", "calls"), [(INTERNAL_ERROR, 2), (PERMISSION_DENIED, 1)])
def test_own_error_is_as_patient_as_its_cause(code, calls, waits, report):
    error = TrackingError("the registry")
    error.__cause__ = MlflowException("why", code)
    server = Server(error)
    if calls == 1:
        with pytest.raises(TrackingError):
            with_patience(server, report)
    else:
        assert with_patience(server, report) == "answer"
    assert server.calls == calls


def test_mistake_of_ours_is_not_waited_for(waits, report):
    with pytest.raises(KeyError):
        with_patience(Server(KeyError("x")), report)
    assert waits == []
