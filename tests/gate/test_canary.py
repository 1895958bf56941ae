from dataclasses import replace

import pytest

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.gate.canary import CanaryLook, judge_canary
from mlflow_finetune_plugin.gate.canary_latency import CanaryLatency
from mlflow_finetune_plugin.gate.canary_policy import CanaryPolicy
from mlflow_finetune_plugin.gate.criteria import Finding
from mlflow_finetune_plugin.gate.policy import LatencyPolicy
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered
from mlflow_finetune_plugin.gate.statistics.failures import FailureTest
from mlflow_finetune_plugin.store.latency_counts import LatencyCounts

POLICY = CanaryPolicy((5, 25, 50), step_s=600, least_answers=100)
GOOD = CanaryLook(
    step=0,
    in_step_s=600,
    step_answers=100,
    canary=Answered(400, 4),
    champion=Answered(7600, 80),
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


def test_it_widens_only_when_few_failures_are_shown():
    few = replace(GOOD, canary=Answered(100, 2))  # of 2 % failures, 100 answers do not show less than 5 %
    verdict = judge_canary(POLICY, few)
    assert verdict.action == "wait"
    assert outcomes(verdict)["canary step"] == "noted"
    assert judge_canary(POLICY, replace(few, canary=Answered(600, 12))).action == "widen"
    assert judge_canary(replace(POLICY, failures_at_most=0.2), few).action == "widen"
    verdict = judge_canary(POLICY, replace(few, in_step_s=6000))
    assert verdict.action == "hold"
    assert "2 of 100 answers failed, so up to 0.083 of all may" in verdict.reason
    assert verdict.reason.endswith(
        "of all may, and 0.05 is allowed; it has lasted 10 times as long as a step; "
        "fix: send more traffic, or raise --failures-at-most"
    )


def test_failures_of_one_key_keep_it_from_widening_and_never_bring_it_back():
    look = replace(GOOD, canary=Answered(200, 1), champion=Answered(3800, 40))
    assert judge_canary(POLICY, look).action == "widen"
    look = replace(look, left_out=150)
    assert judge_canary(POLICY, look).action == "wait"
    verdict = judge_canary(POLICY, replace(look, in_step_s=6000))
    assert verdict.action == "hold"
    assert "151 of 350 answers failed" in verdict.reason


def test_more_failures_than_the_champion_go_back_even_when_time_is_over():
    failures = FailureTest()
    for failed in (1, 0, 0, 0, 0):
        failures = failures.after(Answered(20, failed), Answered(380, 4))
    assert judge_canary(POLICY, replace(GOOD, failures=failures)).action == "widen"
    for _ in range(5):
        failures = failures.after(Answered(10, 2), Answered(190, 0))
    verdict = judge_canary(POLICY, replace(GOOD, failures=failures))
    assert verdict.action == "back"
    assert verdict.reason.startswith("canary failures: 4 of 400 answers failed, of the champion's 80 of 7,600")


def test_failures_above_the_bound_go_back():
    verdict = judge_canary(POLICY, replace(GOOD, canary=Answered(100, 20)))
    assert verdict.action == "back"
    assert outcomes(verdict)["canary failures"] == "pass"
    assert verdict.reason.startswith("canary failure bound: 20 of 100 answers failed")


def test_a_few_users_whose_prompts_fail_hold_it_and_do_not_bring_it_back():
    """One of ten users on the canary's side has most of its failures; the champion has such users too."""
    of_one = replace(GOOD, canary=Answered(100, 30), first_answers=(Answered(10, 1), Answered(190, 4)))
    verdict = judge_canary(POLICY, of_one)
    assert (verdict.action, outcomes(verdict)["canary failure bound"]) == ("wait", "hold")
    verdict = judge_canary(POLICY, replace(of_one, in_step_s=6000))
    assert verdict.action == "hold"
    assert "and 1 of 10 where each user counts once; fix: find out whose requests fail" in verdict.reason
    of_many = replace(of_one, first_answers=(Answered(10, 4), Answered(190, 4)))
    assert judge_canary(POLICY, of_many).action == "back"


def test_a_canary_that_only_fails_goes_back_with_one_user_too():
    alone = replace(GOOD, canary=Answered(30, 30), first_answers=(Answered(1, 1), Answered(190, 0)))
    assert judge_canary(POLICY, alone).action == "back"


def test_while_both_sides_fail_it_neither_widens_nor_goes_back():
    outage = replace(GOOD, canary=Answered(100, 20), champion=Answered(1900, 380))
    assert judge_canary(POLICY, outage).action == "wait"
    verdict = judge_canary(POLICY, replace(outage, in_step_s=6000))
    assert verdict.action == "hold"
    assert "and some of the champion's 380 of 1,900; fix: find out why both fail" in verdict.reason


def test_slow_answers_go_back_and_latency_that_was_not_measured_does_not():
    policy = LatencyPolicy(p95_ms=800, over_champion=1.5)
    fast, slow = LatencyCounts.of([400.0] * 100), LatencyCounts.of([400.0] * 70 + [900.0] * 30)
    latency = CanaryLatency(policy, fast, fast, Answered(0, 0), Answered(0, 0), FailureTest())
    assert judge_canary(POLICY, replace(GOOD, latency=latency)).action == "widen"
    assert judge_canary(POLICY, replace(GOOD, latency=replace(latency, canary=LatencyCounts()))).action == "widen"
    verdict = judge_canary(POLICY, replace(GOOD, latency=replace(latency, canary=slow)))
    assert verdict.action == "back"
    assert verdict.reason.startswith("canary latency p95: p95 899.8 ms, 30 of 100 answers took longer")
    both = judge_canary(POLICY, replace(GOOD, in_step_s=6000, latency=replace(latency, canary=slow, champion=slow)))
    assert both.action == "hold"
    assert "fix: find out why both are slow" in both.reason


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
        {"steps": (5,), "failures_at_most": 0},
        {"steps": (5,), "failures_at_most": 0.95},
    ],
)
def test_what_is_no_policy_is_refused(wrong):
    with pytest.raises(GateError, match="fix:"):
        CanaryPolicy(**wrong)
