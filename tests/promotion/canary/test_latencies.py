"""Latencies of canary and champion, window by window."""

from mlflow_finetune_plugin.gate.policy import LatencyPolicy
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered
from mlflow_finetune_plugin.promotion.canary.latencies import CanaryLatencies
from mlflow_finetune_plugin.store.latency_counts import LatencyCounts

POLICY = LatencyPolicy(over_champion=1.5)
A = ("a", 1.0)


def counts(fast, slow=0):
    return LatencyCounts.of([50.0] * fast + [400.0] * slow)


def canary(before, *reported, policy=POLICY):
    latencies = CanaryLatencies(policy, before)
    for news in reported:
        latencies.take(news)
        latencies.compare()
    return latencies


def test_windows_begin_with_the_canary_and_end_where_both_sides_have_answered():
    before = {A: (counts(30, 30), counts(100, 2))}
    latencies = canary(before, {A: (counts(35, 31), counts(100, 2))}, {A: (counts(35, 31), counts(130, 2))})
    assert latencies.slow == (Answered(6, 1), Answered(30, 0))
    assert latencies.evidence.canary == counts(5, 1)
    assert latencies.evidence.champion == counts(30)
    latencies.take({A: (counts(40, 35), counts(150, 2))})
    latencies.compare()
    assert latencies.slow == (Answered(15, 5), Answered(50, 0))
    assert latencies.slower.e_worse > 1


def test_without_earlier_answers_of_the_champion_the_first_window_only_measures():
    latencies = canary({}, {A: (counts(5, 5), counts(30))}, {A: (counts(9, 9), counts(60))})
    assert latencies.slow == (Answered(8, 4), Answered(30, 0))
    assert latencies.total(0) == counts(9, 9), "the budget counts all"


def test_routers_and_their_starts_are_apart_and_older_reports_are_ignored():
    before = {A: (counts(0), counts(100))}
    latencies = canary(before, {("b", 1.0): (counts(5), counts(0)), A: (counts(0), counts(120))})
    assert latencies.slow == (Answered(0, 0), Answered(0, 0))
    latencies.take({A: (counts(0), counts(90))})
    assert latencies.total(1) == counts(20)


def test_without_a_policy_there_is_no_evidence():
    assert canary({}, {A: (counts(5), counts(5))}, policy=None).evidence is None
