"""What the latencies of a canary and of its champion lead to."""

import pytest

from mlflow_finetune_plugin.gate.canary_latency import CanaryLatency, judge_canary_latency
from mlflow_finetune_plugin.gate.policy import LatencyPolicy
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered
from mlflow_finetune_plugin.gate.statistics.failures import FailureTest
from mlflow_finetune_plugin.store.latency_counts import LatencyCounts

NONE = Answered(0, 0)
POLICY = LatencyPolicy(p95_ms=100, over_champion=1.5)


def latencies(fast, slow):
    return LatencyCounts.of([50.0] * fast + [200.0] * slow)


def outcomes(canary, champion, slow_canary=NONE, slow_champion=NONE):
    test = FailureTest().after(slow_canary, slow_champion)
    latency = CanaryLatency(POLICY, canary, champion, slow_canary, slow_champion, test)
    return {finding.name: finding.outcome for finding in judge_canary_latency(latency)}


@pytest.mark.parametrize(
    ("canary", "champion", "outcome"),
    [
        (latencies(100, 5), latencies(100, 5), "pass"),
        (latencies(80, 20), latencies(1000, 20), "reject"),
        (latencies(8, 2), latencies(100, 2), "pass"),
        (latencies(80, 20), latencies(800, 200), "hold"),
        (latencies(100, 0), latencies(800, 200), "pass"),
        (latencies(0, 0), latencies(100, 0), "noted"),
    ],
)
def test_the_budget(canary, champion, outcome):
    assert outcomes(canary, champion)["canary latency p95"] == outcome


@pytest.mark.parametrize(
    ("slow_canary", "slow_champion", "outcome"),
    [
        (Answered(100, 6), Answered(500, 25), "pass"),
        (Answered(100, 25), Answered(500, 25), "reject"),
        (Answered(100, 50), Answered(100, 50), "pass"),
        (Answered(0, 0), Answered(0, 0), "noted"),
    ],
)
def test_the_comparison(slow_canary, slow_champion, outcome):
    counts = latencies(100, 0)
    assert outcomes(counts, counts, slow_canary, slow_champion)["canary latency over champion"] == outcome


def test_a_bound_that_the_policy_does_not_set_has_no_finding():
    latency = CanaryLatency(LatencyPolicy(p95_ms=9), *[latencies(9, 0)] * 2, *[Answered(0, 0)] * 2, FailureTest())
    assert [finding.name for finding in judge_canary_latency(latency)] == ["canary latency p95"]
