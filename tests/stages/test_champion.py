"""The first champion: only a version that passes the gate becomes it, only once, and never at the cost of the run."""

import shutil
from pathlib import Path

import pytest
from promote_command import POLICY, champion, report_of
from proven_versions import register_proven, rows

from mlflow_finetune_plugin.evaluation.results import EvalReport, Interval, MetricResult
from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.promotion.evidence.held_out import FILE
from mlflow_finetune_plugin.promotion.moves.audit import history
from mlflow_finetune_plugin.stages import champion as stage
from mlflow_finetune_plugin.stages.context import RunContext
from mlflow_finetune_plugin.store.names import HELD_OUT_FOLDER
from mlflow_finetune_plugin.store.registry import RegisteredVersion

pytestmark = pytest.mark.store


def proof_of(right: int, base_right: int = 0, count: int = 100) -> EvalReport:
    base, adapter = base_right / count, right / count
    gain = Interval(adapter - base, adapter - base - 0.1, adapter - base + 0.1, method="stated by the test")
    return EvalReport((MetricResult("exact_match", base, adapter, gain, True, count),), None, ())


class Finished:
    """A version whose run has just been proven, and what the run says of the champion."""

    def __init__(self, client, folder: Path, right: int, *, base_right: int = 0, **more) -> None:
        self.client, self.folder, self.right, self.base_right = client, folder, right, base_right
        more = {"policy": POLICY, **more}
        self.number = register_proven(client, "bot", rows(100), right, base_right=base_right, **more)
        version = client.get_model_version("bot", self.number)
        self.run_id, self.digest = version.run_id, version.tags["finetune.adapter_digest"]

    def news(self, first_champion: str = "auto", digest: str | None = None) -> stage.ChampionNews:
        shutil.copy(self.client.download_artifacts(self.run_id, f"{HELD_OUT_FOLDER}/{FILE}"), self.folder / FILE)
        context = RunContext(self.run_id, "", self.folder)
        return stage.champion_news(
            self.client,
            RegisteredVersion("bot", self.number),
            proof_of(self.right, self.base_right),
            first_champion,
            digest or self.digest,
            context,
            Report(self.folder / "report.jsonl"),
        )


def test_the_first_version_that_beats_its_base_becomes_champion_with_its_evidence(client, tmp_path):
    first = Finished(client, tmp_path, right=90)
    news = first.news()
    assert news.line == "version 1, because bot had none and this version passed the gate"
    assert not news.may_promote
    assert champion(client) == "1"
    assert report_of(client)["verdict"]["outcome"] == "promote"
    (record,) = history(client, "bot")
    assert (record.kind, record.to_version, record.is_moved) == ("promote", "1", True)


def test_a_later_version_challenges_and_is_compared(client, tmp_path):
    Finished(client, tmp_path, right=93).news()
    worse = Finished(client, tmp_path, right=39).news()
    assert worse.line == "version 1 was not measured in exact match; promote compares both versions"
    measured = Finished(client, tmp_path, right=95)
    run_of_the_first = client.get_model_version("bot", "1").run_id
    client.log_metric(run_of_the_first, "eval/adapter/exact_match", 0.93)
    better = measured.news()
    assert better.line.startswith("better than version 1: exact match 0.93 -> 0.95 on the same 100 held-out rows")
    assert better.may_promote
    assert champion(client) == "1"


def test_what_does_not_pass_the_gate_stays_without_the_alias(client, tmp_path):
    held = Finished(client, tmp_path, right=2).news()
    assert held.line.startswith(
        "bot has none yet, and this version did not pass the gate (hold, gain: exact_match over"
    )
    assert held.may_promote
    equal = Finished(client, tmp_path, right=30, base_right=30).news()
    assert equal.line == "bot has none yet, and a version that is not better than its base does not become it"
    assert not equal.may_promote
    assert champion(client) is None


def test_manual_leaves_the_first_promotion_to_people(client, tmp_path):
    news = Finished(client, tmp_path, right=90).news("manual")
    assert news.line == "bot has none yet; promote this version to make it the champion"
    assert news.may_promote
    assert champion(client) is None
    assert history(client, "bot") == []


def test_a_policy_that_asks_for_more_than_the_run_measured_is_left_to_promote(client, tmp_path):
    asks_more = {"gain": {"metric": "exact_match"}, "regressions": [{"data": "must.jsonl", "metric": "exact_match"}]}
    (tmp_path / "must.jsonl").write_text("")
    regressions = {"must.jsonl": rows(3, "must.jsonl")}
    policy = GatePolicy.model_validate(asks_more)
    news = Finished(client, tmp_path, right=90, policy=policy, regressions=regressions).news()
    assert "this version was not judged: the policy asks for answers that the run did not measure" in news.line
    assert "fix: mlflow-finetune promote bot --version 1" in news.line
    assert news.may_promote
    assert champion(client) is None


def test_only_what_mlflow_has_is_judged_and_the_run_does_not_wait_for_ever(client, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "_RECORD_PATIENCE_S", 0.3)
    news = Finished(client, tmp_path, right=90).news(digest="f" * 64)
    assert "this version was not judged: MLflow did not have the run's proof after 0 s" in news.line
    assert champion(client) is None


def test_a_champion_that_another_run_made_meanwhile_stays(client, tmp_path, monkeypatch):
    Finished(client, tmp_path, right=93).news()
    late = Finished(client, tmp_path, right=95)
    monkeypatch.setattr(stage, "_champion", lambda client, name: (None, {}, {}))  # as it was a moment ago
    news = late.news()
    assert news.line.startswith(
        "another version became champion meanwhile; to compare the two: mlflow-finetune promote"
    )
    assert champion(client) == "1"
    assert len([record for record in history(client, "bot") if record.is_moved]) == 1
