"""What follows from what is seen of a champion: each finding, the worst wins, and what is not known moves nothing."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.evaluation.results import Interval
from mlflow_finetune_plugin.gate.evidence import Gain, Votes
from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.gate.statistics.detectors.comparison import ComparisonDetector
from mlflow_finetune_plugin.gate.statistics.detectors.failures import FailureDetector
from mlflow_finetune_plugin.gate.statistics.error_budget import candidate_alpha
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered
from mlflow_finetune_plugin.gate.statistics.paired import PairedRows
from mlflow_finetune_plugin.gate.statistics.unpaired import Sample
from mlflow_finetune_plugin.gate.votes import Vote
from mlflow_finetune_plugin.gate.watch import judge_watch
from mlflow_finetune_plugin.gate.watch_evidence import (
    Fall,
    NewRows,
    NotMeasured,
    Proof,
    Turns,
    WatchedLatency,
    WatchEvidence,
)
from mlflow_finetune_plugin.gate.watch_policy import WatchPolicy
from mlflow_finetune_plugin.store.latency_counts import LatencyCounts

NOT = NotMeasured("nobody looked")
NOTHING = WatchEvidence("1", GatePolicy(), NOT, NOT, NOT, NOT, NOT, NOT)
POLICY = WatchPolicy()
GATE = GatePolicy.model_validate({"latency": {"p95_ms": 100, "over_champion": 1.5}, "votes": {"minimum": 10}})


def proof(gained, lost, rows=200, number=1, **more):
    """Of rows of 0 and 1 the champion gains ``gained`` over the previous version and loses ``lost``."""
    champion = [1.0] * gained + [0.0] * (rows - gained)
    previous = [0.0] * gained + [1.0] * lost + [0.0] * (rows - gained - lost)
    ids = tuple(str(i) for i in range(rows))
    return Proof(Gain("exact_match", "champion", PairedRows(ids, tuple(champion), tuple(previous)), **more), number)


def answered(*batches):
    """Batches of (answers, failures) as the watch has read them, one at each check."""
    detector = FailureDetector(POLICY.errors.at_most)
    for answers, failed in [batches] if isinstance(batches[0], int) else batches:
        detector = detector.after(Answered(answers, failed))
    return detector


def latency(over=(100, 0), previous_over=None, slow=None):
    """Answers and how many took longer than the budget; ``slow``: those of both versions in one window."""
    tests = [over and FailureDetector(0.05).after(Answered(*over)) for over in (over, previous_over)]
    compared = ComparisonDetector()
    if slow is not None:
        compared = compared.after([(Answered(*slow[0]), Answered(*slow[1]))])
    return WatchedLatency(LatencyCounts.of([90.0] * 50), *tests, compared)


def votes(preferred, voters, each=5):
    choice = "candidate" if preferred else "champion"
    return Votes(tuple(Vote(str(v), choice) for v in range(voters) for _ in range(each)))


def fall(held_out, new, rows=300, number=1, **more):
    sides = [Sample((1.0,) * hits + (0.0,) * (rows - hits)) for hits in (held_out, new)]
    return Fall("exact_match", *sides, number, **more)


def judged(policy=POLICY, **evidence):
    return judge_watch(policy, replace(NOTHING, **evidence))


def outcomes(verdict):
    return {finding.name: finding.outcome for finding in verdict.findings}


def test_what_was_not_measured_is_said_and_moves_nothing():
    verdict = judged()
    assert verdict.outcome == "keep"
    assert set(outcomes(verdict).values()) == {"not measured"}
    assert "nothing that is watched could be measured" in verdict.reason
    assert all(finding.reason for finding in verdict.findings)


@pytest.mark.parametrize(
    ("evidence", "name", "outcome"),
    [
        ({"proof": proof(2, 30)}, "proof", "roll back"),
        ({"proof": proof(30, 2)}, "proof", "keep"),
        ({"proof": proof(10, 12)}, "proof", "keep"),
        ({"proof": proof(30, 2, higher_is_better=False)}, "proof", "roll back"),
        ({"failures": answered(1000, 40)}, "errors", "roll back"),
        ({"failures": answered(1000, 12)}, "errors", "keep"),
        ({"failures": answered(29, 29)}, "errors", "keep"),
        ({"failures": answered(30, 30)}, "errors", "roll back"),
        ({"failures": answered(1000, 40), "previous_failures": answered(1000, 40)}, "errors", "keep"),
        ({"failures": answered(1000, 40), "previous_failures": answered(1000, 10)}, "errors", "roll back"),
        ({"failures": answered(1000, 40), "previous_failures": answered(4, 4)}, "errors", "roll back"),
        ({"failures": answered((50_000, 100), (300, 30))}, "errors", "roll back"),
        ({"failures": answered((50_000, 100), (300, 3))}, "errors", "keep"),
        ({"latency": latency(over=(1000, 100))}, "latency p95", "roll back"),
        ({"latency": latency(over=(1000, 50))}, "latency p95", "keep"),
        ({"latency": latency(over=(20, 3))}, "latency p95", "keep"),
        ({"latency": latency(over=(1000, 100), previous_over=(1000, 100))}, "latency p95", "keep"),
        ({"latency": latency(over=(1000, 100), previous_over=(1000, 50))}, "latency p95", "roll back"),
        ({"latency": latency(slow=((300, 60), (300, 15)))}, "latency over previous", "roll back"),
        ({"latency": latency(slow=((300, 20), (300, 15)))}, "latency over previous", "keep"),
        ({"latency": latency()}, "latency over previous", "not measured"),
        ({"latency": replace(latency(), compared=NOT)}, "latency over previous", "not measured"),
        ({"votes": votes(True, 30)}, "votes", "roll back"),
        ({"votes": votes(True, 9)}, "votes", "keep"),
        ({"votes": votes(False, 30)}, "votes", "keep"),
        ({"votes": Votes(())}, "votes", "keep"),
        ({"turns": Turns((0.0,) * 80 + (1.0,) * 20, (1.0,) * 60 + (0.0,) * 40)}, "drift of votes", "re-tune"),
        ({"turns": Turns((0.0,) * 80 + (1.0,) * 20, (1.0,) * 20 + (0.0,) * 80)}, "drift of votes", "keep"),
        ({"turns": Turns((0.0,) * 80, ())}, "drift of votes", "not measured"),
    ],
)
def test_each_finding(evidence, name, outcome):
    verdict = judged(gate=GATE, **evidence)
    assert outcomes(verdict)[name] == outcome
    assert verdict.outcome == ("keep" if outcome == "not measured" else outcome)


@pytest.mark.parametrize(
    ("rows", "name", "outcome"),
    [
        (NewRows(proof(2, 30, number=2), NOT, NOT), "proof on new rows", "roll back"),
        (NewRows(NOT, fall(290, 200), NOT), "drift of data", "re-tune"),
        (NewRows(NOT, fall(290, 270), NOT), "drift of data", "keep"),
        (NewRows(NOT, fall(200, 290), NOT), "drift of data", "keep"),
        (NewRows(NOT, fall(200, 290, higher_is_better=False), NOT), "drift of data", "re-tune"),
        (NewRows(NOT, NOT, fall(100, 250, higher_is_better=False)), "drift of nats per token", "re-tune"),
    ],
)
def test_new_rows(rows, name, outcome):
    verdict = judged(new_rows=rows)
    assert outcomes(verdict)[name] == outcome == verdict.outcome


def test_the_bounds_of_drift_share_one_chance_of_error():
    new = NewRows(NOT, fall(290, 200), fall(100, 250, higher_is_better=False))
    verdict = judged(new_rows=new)
    drifts = ("drift of data", "drift of nats per token")
    parts = [finding.details["alpha"] for finding in verdict.findings if finding.name in drifts]
    whole = candidate_alpha(POLICY.drift.alpha, 1)
    assert sum(parts) == pytest.approx(whole)
    assert parts[0] == parts[1]


def test_the_worst_finding_wins_and_tells_why():
    verdict = judged(
        gate=GATE, proof=proof(30, 2), failures=answered(1000, 40), new_rows=NewRows(NOT, fall(290, 200), NOT)
    )
    assert verdict.outcome == "roll back"
    assert verdict.reason.startswith("errors: 40 of 1,000 answers failed")
    assert "drift" not in verdict.reason
    assert judged(proof=proof(30, 2), new_rows=NewRows(NOT, fall(290, 200), NOT)).outcome == "re-tune"


def test_a_rise_is_named_by_its_own_counts():
    verdict = judged(failures=answered((50_000, 100), (300, 30), (300, 25)))
    assert verdict.reason == "errors: 55 of 600 answers failed recently, of all 155 of 50,600: above 0.01"


def test_without_a_version_to_go_back_to_nothing_is_rolled_back():
    verdict = judged(previous=NotMeasured("there is no previous version"), failures=answered(1000, 40))
    assert verdict.outcome == "re-tune"
    assert verdict.reason.startswith("it cannot be rolled back, there is no previous version; errors: 40 of 1,000")
    assert judged(previous=NotMeasured("there is none"), failures=answered(1000, 1)).outcome == "keep"


def test_each_further_set_of_rows_has_a_smaller_share_of_alpha():
    first, second = (judged(proof=proof(5, 16, number=number)).findings[0] for number in (1, 9))
    assert first.outcome == "roll back"
    assert second.outcome == "keep"
    assert first.details["alpha"] > 0.025 > second.details["alpha"]
    assert first.interval.method == "Tango 1998 score and half-samples of rows, confidence 0.9392"
    whole = Proof(Gain("bleu", "champion", Interval(-3.0, -5.0, -1.0, "told")), 1)
    assert judged(proof=whole).outcome == "roll back"
    other = judged(proof=replace(whole, number=2)).findings[0]
    assert (other.outcome, "good for one set of rows" in other.reason) == ("not measured", True)
    with pytest.raises(GateError, match="count them from 1"):
        replace(whole, number=0)


def test_a_latency_that_nobody_asked_for_is_not_measured():
    assert outcomes(judged(latency=latency(over=(100, 100))))["latency"] == "not measured"


def test_json_is_json():
    content = json.loads(judged(proof=proof(0, 0, rows=1), failures=answered(100, 0)).to_json())
    assert content["outcome"] == "keep"
    assert {"name", "outcome", "reason", "bound", "estimate", "interval", "method", "details"} == set(
        content["findings"][0]
    )
    unbounded = Fall("token_f1", Sample((0.5,) * 3), Sample((0.2, 0.4)), 1)
    findings = json.loads(judged(new_rows=NewRows(NOT, unbounded, NOT)).to_json())["findings"]
    assert [finding["interval"] for finding in findings if finding["name"] == "drift of data"] == [[None, None]]


@pytest.mark.simulation
def test_a_champion_that_is_fine_is_rolled_back_or_tuned_in_at_most_alpha_of_all_watches():
    """Looks after every batch of answers and of votes; the vote drift is told from a promotion that good luck brought about."""
    rng = np.random.default_rng(5)
    policy, gate = POLICY, GatePolicy.model_validate({"votes": {"unit": "vote", "per_voter": 1000}})
    acted = {"votes": 0, "drift of votes": 0}
    for _ in range(150):
        before = _promoted_by_luck(rng)
        cast = rng.random(200) < 0.5
        acted_on = set()
        for count in range(10, 201, 10):
            verdict = judged(
                policy,
                gate=gate,
                votes=Votes(tuple(Vote("v", "candidate" if is_lost else "champion") for is_lost in cast[:count])),
                turns=Turns(before, tuple(cast[:count].astype(float))),
            )
            acted_on |= {finding.name for finding in verdict.findings if finding.outcome in ("roll back", "re-tune")}
        for name in acted_on:
            acted[name] += 1
    assert acted["votes"] <= 150 * 0.05 + 2 * math.sqrt(150 * 0.05)
    assert acted["drift of votes"] <= 150 * 0.05


def _promoted_by_luck(rng):
    """Votes on a version that loses half of its turns, up to where it had lost fewest of 20 to 200."""
    lost = rng.random(200) < 0.5
    shares = lost.cumsum() / np.arange(1, 201)
    best = 20 + int(np.argmin(shares[20:]))
    return tuple(lost[:best].astype(float))


@pytest.mark.parametrize(
    "content",
    [
        {"errors": {"at_most": 0.0}},
        {"errors": {"at_most": "1%"}},
        {"proof": {"alpha": 0.7}},
        {"drift": {"at_least": 1}},
    ],
)
def test_bad_policies_are_refused(content):
    with pytest.raises(ValidationError):
        WatchPolicy.model_validate(content)
