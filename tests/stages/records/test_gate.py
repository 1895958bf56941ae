"""What a run writes down for its promotion, before its first step and when it is resumed."""

import json

import pytest
from proven_versions import rows

from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.promotion.written_policy import WrittenPolicy
from mlflow_finetune_plugin.stages.records.gate import record_held_out, record_policy
from mlflow_finetune_plugin.store.names import GATE_DIGEST_TAG

POLICY = GatePolicy.model_validate({"gain": {"metric": "exact_match"}})


@pytest.fixture
def told(tmp_path):
    """(a report, what it was told by kind of event)."""
    report = Report(tmp_path / "report.jsonl")

    def told(kind):
        lines = (tmp_path / "report.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    return report, told


def test_a_first_attempt_writes_its_policy(told, tmp_path):
    report, events = told
    record_policy(POLICY, {}, tmp_path, report, earlier=None)
    assert events("tags")[0]["values"] == {GATE_DIGEST_TAG: WrittenPolicy(POLICY).digest}
    assert (tmp_path / "gate" / "policy.json").is_file()


def test_a_later_attempt_leaves_the_policy_and_says_when_it_is_another(told, tmp_path):
    report, events = told
    record_policy(POLICY, {}, tmp_path, report, earlier=WrittenPolicy(POLICY).digest)
    assert not events("note")
    record_policy(POLICY, {}, tmp_path, report, earlier="0" * 64)
    assert "the version is judged by the policy of the beginning" in events("note")[0]["text"]
    assert not events("tags")
    assert not events("artifact")


def test_a_metric_file_is_kept_with_its_digest(told, tmp_path):
    report, events = told
    metric = tmp_path / "mine.py"
    metric.write_text("mine")
    record_held_out(rows(3), [str(metric), "f1"], 9, tmp_path, report)
    assert [event["path"] for event in events("artifact")][1:] == [str(metric)]
    kept = json.loads((tmp_path / "held_out.json").read_text())["metrics"]
    assert kept["f1"] is None
    assert len(kept["mine.py"]) == 64
