"""A candidate is judged on rows that it brings. Where the champion was proven on others, it must not be worse on these."""

import numpy as np
import pytest
from promote_command import POLICY
from proven_versions import RIGHT, WRONG, register_proven, rows

from mlflow_finetune_plugin.evaluation.comparison import AnswerSet
from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.promotion.decision import decide, prepare_decision
from mlflow_finetune_plugin.promotion.evidence.answers import Sources

pytestmark = pytest.mark.store


class Answerer:
    """Answers the first ``right`` rows rightly."""

    def __init__(self, right):
        self.right = right

    def answer(self, held_out, max_new_tokens):
        answers = [RIGHT if i < self.right else WRONG for i in range(len(held_out))]
        return AnswerSet(answers, np.ones(len(held_out)))


def other_rows(count):
    return rows(300)[300 - count :]


def judged(client, version, right):
    """Judge the version; whoever has to answer rows now answers the first ``right`` rightly."""
    pending = prepare_decision(client, "bot", version, "champion")
    decision = decide(pending, Sources(answerer=lambda proven: Answerer(right)), lambda text: None)
    return {finding.name: finding for finding in decision.verdict.findings}, decision


def register_champion(client, held_out, right):
    first = register_proven(client, "bot", held_out, right=right, policy=POLICY)
    client.set_registered_model_alias("bot", "champion", first)


@pytest.mark.parametrize(("right", "outcome"), [(95, "pass"), (86, "hold"), (50, "reject")])
def test_the_candidate_answers_the_champions_rows_too(client, right, outcome):
    register_champion(client, rows(100), 90)
    better = register_proven(client, "bot", other_rows(100), right=99, policy=POLICY)
    findings, _ = judged(client, better, right)
    finding = findings["champion's rows"]
    assert finding.outcome == outcome
    assert finding.interval.value == pytest.approx((right - 90) / 100)
    assert finding.bound == -0.05
    assert findings.keys() == {"gain", "champion's rows"}


def test_the_same_rows_are_asked_once(client):
    register_champion(client, rows(100), 50)
    findings, _ = judged(client, register_proven(client, "bot", rows(100), right=90, policy=POLICY), 0)
    assert findings.keys() == {"gain"}
    findings, _ = judged(client, register_proven(client, "bot", rows(120), right=110, policy=POLICY), 50)
    assert findings.keys() == {"gain"}, "the candidate brought the champion's rows and more"


def test_rows_that_the_candidate_was_trained_on_are_left_out(client):
    register_champion(client, rows(100), 90)
    better = register_proven(client, "bot", other_rows(100), right=99, policy=POLICY, trained_on=rows(60))
    findings, decision = judged(client, better, 100)
    assert "on 40 rows" in findings["champion's rows"].reason
    assert any("trained on 60 of 100 held-out rows" in note for note in decision.notes)


def test_a_policy_can_leave_it_out(client):
    policy = GatePolicy.model_validate({"gain": {"metric": "exact_match", "champion_rows_margin": None}})
    register_champion(client, rows(100), 90)
    better = register_proven(client, "bot", other_rows(100), right=99, policy=policy)
    assert judged(client, better, 0)[0].keys() == {"gain"}
