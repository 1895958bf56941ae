"""``votes:NAME`` through the real command: a report, a refusal before a run, and a killed run that goes on with the same rows."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest
from conftest import Workplace
from killed_runs import arguments, kill_after
from votes_cast import Ledger, register_versions, vote

from mlflow_finetune_plugin.votes import Journal

pytestmark = pytest.mark.process

DPO = {"data": "votes:bot", "eval_data": "0.2", "metrics": "preference_accuracy", "eval_steps": 100}


@pytest.fixture
def voters(workplace: Workplace) -> tuple[Workplace, Ledger]:
    (workplace.path / "project").mkdir()
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(workplace.tracking_uri)
    register_versions(workplace.tracking_uri)
    mlflow.set_tracking_uri(before)
    ledger = Ledger(Journal("bot", workplace.home / "votes" / "bot"), workplace.tracking_uri)
    ledger.cast(*(vote(n, voter=f"v-{n % 8}", answers=(f"yes {n}!", f"no {n}")) for n in range(40)), vote("t", "tie"))
    return workplace, ledger


def dpo(**more: object) -> list[str]:
    words = arguments(**{**DPO, **more})
    words[words.index("lora")] = "dpo"
    return words


@pytest.mark.bad_input
def test_a_report_and_refusals_without_a_run(voters):
    workplace, _ = voters
    report = workplace.cli("data", "votes:bot", "-e", "dpo", "-P", "base_model=embedded", "-P", "data.eval=0.2")
    assert report.returncode == 0, report.stdout
    assert "votes:bot: preference" in report.stdout
    assert "40 rows of 41 votes by 8 voter(s) on answers of 1, 2; left out 1: tie or both bad" in report.stdout
    assert "8 groups of voters and prompts: none of either is on both sides of a split" in report.stdout
    for data, why in (
        ("votes:nobody", "the registry has no model 'nobody'"),
        ("votes:bot/1", "not the votes of a registered model; fix: use votes:NAME"),
    ):
        refused = workplace.finetune_run(*dpo(data=data))
        assert refused.returncode == 2, refused.stdout
        assert why in refused.stdout
    refused = workplace.finetune_run(*dpo(group="customer"))
    assert "data.group = 'customer': the rows of votes:bot have no such column" in refused.stdout
    assert workplace.runs() == []


@pytest.mark.fault
@pytest.mark.timeout(900)
def test_a_resumed_run_does_not_see_later_votes(voters):
    workplace, ledger = voters
    kill_after(workplace, 4, set(), workplace.start_finetune_run(*dpo()))
    run_id = workplace.only_run().info.run_id
    ledger.cast(*(vote(f"later {n}", "right", voter=f"w-{n}", answers=(f"a {n}", f"b {n}")) for n in range(20)))
    resumed = workplace.finetune_run(*dpo(resume=run_id))
    assert resumed.returncode == 0, resumed.stdout
    assert "resumed after step" in resumed.stdout
    assert "clusters are too few), because these are held-out votes of few groups of voters" in resumed.stdout
    assert "or let people's votes decide (register.gate.votes.required: true)" in resumed.stdout
    run = workplace.client().get_run(run_id)
    (recorded,) = json.loads(Path(workplace.client().download_artifacts(run_id, "finetune/votes.json")).read_text())
    assert len(recorded["votes"]) == 41
    (train,) = [entry.dataset for entry in run.inputs.dataset_inputs if entry.dataset.name == "votes:bot"]
    lineage = {"model": "bot", "digest": recorded["digest"], "votes": 41, "voters": 8, "versions": ["1", "2"]}
    assert json.loads(train.source) == {"files": ["votes:bot"], "votes": [lineage]}
