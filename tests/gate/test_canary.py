from dataclasses import replace

import pytest

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.gate.canary import CanaryLook, judge_canary
from mlflow_finetune_plugin.gate.canary_policy import CanaryPolicy
from mlflow_finetune_plugin.gate.criteria import Finding
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered
from mlflow_finetune_plugin.gate.statistics.failures import FailureTest

POLICY = CanaryPolicy((5, 25, 50), step_s=600, least_answers=100)
GOOD = CanaryLook(
    step=0,
    in_step_s=600,
    step_answers=100,
    canary=Answered(100, 1),
    champion=Answered(1900, 20),
    failures=FailureTest(),
)


def outcomes(verdict):
    return {finding.name: finding.outcome for finding in verdict.findings}


def test_it_widens_when_time_is_over_and_enough_was_answered():
    assert judge_canary(POLICY, GOOD).action == "widen"
    for early in (replace(GOOD, in_step_s=599), replace(GOOD, step_answers=99)):
        verdict = judge_canary(POLICY, early)
        assert verdict.action == "wait"
        assert outcomes(verdict)["canary step"] == "noted"


def test_who_gets_nothing_to_answer_holds_after_ten_times_as_long():
    look = replace(GOOD, step=1, step_answers=3, in_step_s=5999)
    assert judge_canary(POLICY, look).action == "wait"
    verdict = judge_canary(POLICY, replace(look, in_step_s=6000))
    assert verdict.action == "hold"
    assert verdict.reason.startswith(
        "canary step: step 2 of 3 (25 %): 3 answers in 6000 s; the step needs 100 in 600 s"
    )


def test_more_failures_than_the_champion_go_back_even_when_time_is_over():
    failures = FailureTest()
    for failed in (1, 0, 0, 0, 0):
        failures = failures.after(Answered(20, failed), Answered(380, 4))
    assert judge_canary(POLICY, replace(GOOD, failures=failures)).action == "widen"
    for _ in range(5):
        failures = failures.after(Answered(10, 2), Answered(190, 0))
    verdict = judge_canary(POLICY, replace(GOOD, failures=failures))
    assert verdict.action == "back"
    assert verdict.reason.startswith("canary failures: 1 of 100 answers failed, of the champion's 20 of 1,900")


def test_failures_above_the_bound_go_back():
    verdict = judge_canary(POLICY, replace(GOOD, canary=Answered(100, 20)))
    assert verdict.action == "back"
    assert outcomes(verdict)["canary failures"] == "pass"
    assert verdict.reason.startswith("canary failure bound: 20 of 100 answers failed")


def test_while_both_sides_fail_it_neither_widens_nor_goes_back():
    outage = replace(GOOD, canary=Answered(100, 20), champion=Answered(1900, 380))
    assert judge_canary(POLICY, outage).action == "wait"
    verdict = judge_canary(POLICY, replace(outage, in_step_s=6000))
    assert verdict.action == "hold"
    assert "and some of the champion's 380 of 1,900; fix: find out why both fail" in verdict.reason


def test_slow_answers_go_back_only_when_seen_in_a_row():
    slow = Finding("latency p95", "reject", "p95 900 ms: above the budget, 800 ms", 800)
    for looks, action in ((2, "widen"), (3, "back")):
        assert judge_canary(POLICY, replace(GOOD, latency=(slow,), slow_looks=looks)).action == action
    missing = Finding("latency p95", "hold", "latency was not measured; fix: measure it")
    assert judge_canary(POLICY, replace(GOOD, latency=(missing,), slow_looks=3)).action == "widen"


def test_votes_against_it_go_back_and_undecided_ones_do_not():
    lost = Finding("votes", "reject", "worse than the champion, shown after 40")
    verdict = judge_canary(POLICY, replace(GOOD, votes=lost))
    assert verdict.action == "back"
    assert verdict.reason == "canary votes: worse than the champion, shown after 40"
    for outcome in ("hold", "noted", "pass"):
        assert judge_canary(POLICY, replace(GOOD, votes=replace(lost, outcome=outcome))).action == "widen"


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": ()},
        {"steps": (5, 5)},
        {"steps": (0, 5)},
        {"steps": (25, 5)},
        {"steps": (50, 101)},
        {"steps": (float("nan"),)},
        {"steps": (5,), "step_s": 0},
        {"steps": (5,), "step_s": float("nan")},
        {"steps": (5,), "least_answers": 0},
    ],
)
def test_what_is_no_policy_is_refused(wrong):
    with pytest.raises(GateError, match="fix:"):
        CanaryPolicy(**wrong)
