"""A probe asks both versions in turns, and ends when the gate can decide."""

from types import SimpleNamespace

import pytest

from mlflow_finetune_plugin.gate.evidence import Evidence
from mlflow_finetune_plugin.gate.latency import judge_latency
from mlflow_finetune_plugin.gate.policy import LatencyPolicy
from mlflow_finetune_plugin.promotion.evidence.endpoint import PROBE_ANSWERS, RouterEndpoint, probe_latency

ENDPOINT = RouterEndpoint("http://127.0.0.1:9/v1")
ROWS = SimpleNamespace(rows=["a", "b", "c"], max_new_tokens=4)


class TimedVersion:
    """Answers in a fixed time; the first three answers are slow, as an engine is that is not warm."""

    def __init__(self, took_ms):
        self.took_ms, self.rows = took_ms, []

    def ask(self, client, row, max_new_tokens):
        self.rows.append(row)
        return "", self.took_ms * (50 if len(self.rows) <= 3 else 1)


def is_decided(latency):
    findings = judge_latency(LatencyPolicy(over_champion=1.5), Evidence(True, latency=latency))
    return all(finding.outcome != "hold" for finding in findings)


@pytest.mark.parametrize("took_ms", [100.0, 400.0])
def test_a_clear_difference_needs_fewer_answers_than_the_most(took_ms):
    candidate, champion = TimedVersion(took_ms), TimedVersion(100.0)
    latency = probe_latency(candidate, champion, ENDPOINT, ROWS, lambda line: None, is_decided)
    assert latency.candidate.total == latency.champion.total < PROBE_ANSWERS
    assert is_decided(latency)
    assert candidate.rows == champion.rows
    assert latency.candidate.quantile_ms(1.0) == pytest.approx(took_ms, rel=0.02), "the first answers are not counted"


def test_what_cannot_be_decided_ends_after_the_most_answers():
    candidate = TimedVersion(150.0)
    latency = probe_latency(candidate, TimedVersion(100.0), ENDPOINT, ROWS, lambda line: None, lambda latency: False)
    assert latency.candidate.total == PROBE_ANSWERS
    alone = probe_latency(candidate, None, ENDPOINT, ROWS, lambda line: None)
    assert alone.champion is None
