"""Each check reads what routers counted since the last one, and compares versions only within these windows."""

import json
from dataclasses import asdict

import pytest

from mlflow_finetune_plugin.gate.policy import LatencyPolicy
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered
from mlflow_finetune_plugin.store.latency_counts import LatencyCounts
from mlflow_finetune_plugin.store.served_tags import ServedSummary
from mlflow_finetune_plugin.watch.latencies import WatchedLatencies

POLICY = LatencyPolicy(p95_ms=100, over_champion=1.5)


def report(fast, slow, begun=1.0, *, slow_ms=400.0):
    """Answers of 50 ms and of ``slow_ms`` that one router has counted since ``begun``."""
    counts = LatencyCounts.of([50.0] * fast + [slow_ms] * slow)
    return ServedSummary(begun, fast + slow, 0, None, counts)


def checks(*reports, policy=POLICY, state=None):
    """Checks of champion 2 after version 1, each with the reports on both by router."""
    state = state or WatchedLatencies()
    for champion, previous in reports:
        state = state.after(policy, ("2", champion), ("1", previous))
    return state


def test_the_budget_is_tested_by_what_came_since_the_last_check():
    state = checks(({"a": report(100, 0)}, {}), ({"a": report(150, 9)}, {}), ({"a": report(150, 9)}, {}))
    test = state.budget_test("2", 100)
    assert (test.batches, test.total) == (2, Answered(159, 9))
    assert state.budget_test("2", 50).batches == 0, "another budget is another test"
    assert state.total("2").total == 159


def test_versions_are_compared_from_the_second_check_on_and_only_where_both_answered():
    first = ({"a": report(100, 0)}, {"a": report(100, 0)})
    assert checks(first).comparison("2", "1", 1.5).batches == 0
    state = checks(first, ({"a": report(140, 10)}, {"a": report(130, 0)}))
    test = state.comparison("2", "1", 1.5)
    assert (test.batches, test.candidate, test.champion) == (1, Answered(50, 10), Answered(30, 0))
    alone = checks(({"a": report(300, 90)}, {"a": report(130, 0)}), state=state)
    assert alone.comparison("2", "1", 1.5) == test
    other = checks(({"b": report(300, 90)}, {"a": report(230, 0)}), state=state)
    assert other.comparison("2", "1", 1.5) == test, "no router answered with both"


def test_a_version_that_the_last_check_did_not_watch_is_compared_from_the_next_one_on():
    state = checks(({"a": report(100, 0)}, {"a": report(100, 0)}))
    state = state.after(POLICY, ("3", {"a": report(50, 50)}), ("2", {"a": report(200, 0)}))
    assert state.comparison("3", "2", 1.5).batches == 0
    state = state.after(POLICY, ("3", {"a": report(50, 90)}), ("2", {"a": report(240, 0)}))
    assert state.comparison("3", "2", 1.5).candidate == Answered(40, 40)


def test_a_router_that_restarts_or_begins_to_answer_counts_from_then():
    state = checks(({"a": report(100, 0)}, {"a": report(100, 0)}))
    state = checks(({"a": report(30, 3, 2.0)}, {"a": report(40, 0, 2.0)}), state=state)
    assert state.comparison("2", "1", 1.5).candidate == Answered(33, 3)
    assert state.budget_test("2", 100).total == Answered(133, 3)
    late = checks(({"a": report(100, 0)}, {"a": report(100, 0), "b": report(50, 0)}))
    late = checks(({"b": report(20, 9)}, {"b": report(80, 0)}), state=late)
    assert late.comparison("2", "1", 1.5).candidate == Answered(29, 9), "b had no answers of 2 at the last check"


def test_a_report_that_lags_behind_or_counts_no_latencies_changes_nothing():
    state = checks(({"a": report(100, 5)}, {"a": report(100, 5)}))
    assert checks(({"a": report(90, 5)}, {"a": report(90, 5)}), state=state).counts == state.counts
    older = ServedSummary(1.0, 400, 0, None)
    assert checks(({"a": older}, {"a": older}), state=state).counts == state.counts


@pytest.mark.parametrize("alike", [20, 150])
def test_a_version_that_becomes_slow_is_seen_however_long_it_was_not(alike):
    state = WatchedLatencies()
    for check in range(1, alike + 1):
        state = checks(({"a": report(40 * check, 0)}, {"a": report(20 * check, 0)}), state=state)
    assert state.comparison("2", "1", 1.5).evidence < 1
    for check in range(1, 4):
        champion = report(40 * alike + 30 * check, 10 * check)
        state = checks(({"a": champion}, {"a": report(20 * (alike + check), 0)}), state=state)
    assert state.comparison("2", "1", 1.5).evidence >= 20
    assert state.budget_test("2", 100).evidence >= 20


def test_it_is_read_as_it_was_written():
    state = checks(({"a": report(100, 5)}, {"a": report(90, 5)}), ({"a": report(140, 9)}, {"a": report(99, 5)}))
    assert WatchedLatencies.from_json(json.loads(json.dumps(asdict(state)))) == state
    for broken in ({}, {"counts": {"1": {"a": [1.0, {"first": 0, "counts": [-1]}]}}}):
        with pytest.raises((ValueError, KeyError)):
            WatchedLatencies.from_json(broken)
