"""Counts as routers tell them, read again and again: several routers, some started again, some silent, some read late."""

import time

import pytest
from alias_moves import register_versions
from routers_told import told_latencies

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.gate.policy import LatencyPolicy
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered
from mlflow_finetune_plugin.promotion.canary.answers import CanaryAnswers
from mlflow_finetune_plugin.store.names import SERVED_TAG
from mlflow_finetune_plugin.store.served_tags import LatencySummary, ServedSummary

CHAMPION, CANARY = "1", "2"


@pytest.fixture
def tell(workplace):
    client = workplace.client()
    register_versions(client, "bot", 2)

    def tell(version, router, begun, answers, failed, p95_ms=100.0, first=(None, None), left_out=0):
        recent = LatencySummary(answers - failed, 50.0, p95_ms, begun, time.time()) if answers > failed else None
        told = ServedSummary(begun, answers, failed, recent, told_latencies(answers - failed, p95_ms), *first, left_out)
        client.set_model_version_tag("bot", version, f"{SERVED_TAG}{router}", told.to_json())

    tell.client = client
    return tell


def test_counts_are_summed_over_routers_and_their_starts_and_begin_with_the_canary(tell):
    tell(CHAMPION, "a", 10.0, 500, 50)
    tell(CANARY, "a", 10.0, 40, 40)
    answers = CanaryAnswers(tell.client, "bot", CANARY, CHAMPION)
    assert not answers.read()
    tell(CHAMPION, "a", 10.0, 520, 51)
    tell(CANARY, "a", 10.0, 45, 41)
    tell(CHAMPION, "b", 99.0, 30, 0)
    assert answers.read()
    tell(CHAMPION, "a", 77.0, 7, 0)
    tell(CANARY, "a", 77.0, 3, 2)
    assert answers.read()
    assert answers.canary == Answered(5 + 3, 1 + 2)
    assert answers.champions == Answered(20 + 30 + 7, 1)


def test_failures_that_a_router_leaves_out_are_summed_for_the_canary(tell):
    tell(CANARY, "a", 10.0, 40, 4, left_out=9)
    answers = CanaryAnswers(tell.client, "bot", CANARY, CHAMPION)
    tell(CANARY, "a", 10.0, 40, 4, left_out=11)
    tell(CANARY, "b", 20.0, 5, 1, left_out=3)
    tell(CHAMPION, "a", 10.0, 40, 4, left_out=50)
    assert answers.read()
    assert answers.left_out == 2 + 3


def test_a_batch_waits_until_both_sides_have_answered_and_each_router_has_its_own(tell):
    answers = CanaryAnswers(tell.client, "bot", CANARY, CHAMPION)
    tell(CANARY, "a", 10.0, 2, 2)
    tell(CHAMPION, "b", 10.0, 100, 0)
    answers.read()
    assert answers.failures.e_worse == pytest.approx(1), "of different routers nothing is compared"
    tell(CHAMPION, "a", 10.0, 38, 0)
    answers.read()
    assert answers.failures.e_worse > 20
    before = answers.failures
    assert not answers.read()
    assert answers.failures is before


def test_a_late_read_of_an_older_count_is_passed_over_and_a_silent_router_is_named(tell):
    answers = CanaryAnswers(tell.client, "bot", CANARY, CHAMPION)
    tell(CHAMPION, "a", 10.0, 100, 1)
    answers.read()
    tell(CHAMPION, "a", 10.0, 90, 1)
    assert not answers.read()
    assert answers.champions == Answered(100, 1)
    assert answers.silent(time.time() + 1) == ["a"]
    assert answers.silent(time.time() - 60) == []


def test_latencies_are_compared_within_one_router_since_the_canary_began(tell):
    tell(CHAMPION, "a", 10.0, 500, 0)
    tell(CANARY, "a", 10.0, 400, 0, p95_ms=900.0)
    answers = CanaryAnswers(tell.client, "bot", CANARY, CHAMPION, LatencyPolicy(p95_ms=300, over_champion=2.0))
    tell(CANARY, "b", 10.0, 200, 0, p95_ms=300.0)
    answers.read()
    assert answers.latencies.evidence.slow_canary == Answered(0, 0), "of different routers nothing is compared"
    tell(CHAMPION, "a", 10.0, 600, 0)
    tell(CANARY, "a", 10.0, 450, 0, p95_ms=900.0)
    answers.read()
    evidence = answers.latencies.evidence
    assert (evidence.slow_canary, evidence.slow_champion) == (Answered(50, 50), Answered(100, 0))
    assert (evidence.canary.total, evidence.champion.total) == (250, 100)


def test_a_tag_that_is_none_is_told(tell):
    answers = CanaryAnswers(tell.client, "bot", CANARY, CHAMPION)
    tell.client.set_model_version_tag("bot", CANARY, f"{SERVED_TAG}a", "none")
    with pytest.raises(GateError, match=r"bot/2: tag finetune\.served\.a"):
        answers.read()


def test_a_user_who_only_fails_is_compared_once(tell):
    answers = CanaryAnswers(tell.client, "bot", CANARY, CHAMPION)
    tell(CANARY, "a", 10.0, 60, 50, first=(11, 1))
    tell(CHAMPION, "a", 10.0, 100, 0, first=(40, 0))
    answers.read()
    assert (answers.canary, answers.champions) == (Answered(60, 50), Answered(100, 0))
    assert answers.first_answers == (Answered(11, 1), Answered(40, 0))
    assert answers.failures.e_worse < 5
    tell(CANARY, "a", 10.0, 160, 150, first=(31, 21))
    tell(CHAMPION, "a", 10.0, 200, 0, first=(80, 0))
    answers.read()
    assert answers.failures.e_worse > 1000
