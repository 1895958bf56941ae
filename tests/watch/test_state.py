"""Counts go on through restarts of routers, and sets of rows are numbered as they came."""

import json

import pytest

from mlflow_finetune_plugin.gate.statistics.detectors.failures import FailureDetector
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered
from mlflow_finetune_plugin.store.served_tags import ServedSummary
from mlflow_finetune_plugin.watch.state import ServedCounts, WatchState


def told(**routers):
    return {name: ServedSummary(begun, answers, failed, None) for name, (begun, answers, failed) in routers.items()}


def test_what_a_router_counted_before_it_was_started_again_is_kept():
    served = ServedCounts().updated(told(a=(1.0, 100, 2), b=(1.0, 10, 0)))
    assert (served.failures.answers, served.failures.failed) == (110, 2)
    served = served.updated(told(a=(1.0, 150, 3), b=(1.0, 10, 0)))
    assert (served.failures.answers, served.failures.failed) == (160, 3)
    served = served.updated(told(a=(9.0, 5, 1), b=(1.0, 20, 1)))
    assert (served.failures.answers, served.failures.failed) == (175, 5)
    served = served.updated(told(b=(1.0, 20, 1)))  # a's tag was deleted
    assert (served.failures.answers, served.failures.failed) == (175, 5)
    assert served.updated(told(b=(1.0, 20, 1))) == served


def test_a_report_that_lags_behind_is_ignored():
    served = ServedCounts().updated(told(a=(1.0, 100, 2)))
    assert served.updated(told(a=(1.0, 90, 2))) == served


def test_the_answers_since_the_last_check_are_a_batch_of_the_test():
    state = WatchState().with_served("1", told(a=(1.0, 100, 0)), 0.01)
    state = WatchState.from_json(state.to_json()).with_served("1", told(a=(1.0, 150, 5)), 0.01)
    batches = FailureDetector(0.01).after(Answered(100, 0)).after(Answered(50, 5))
    assert state.detectors["1"].batches == 2
    assert state.detectors["1"].evidence == pytest.approx(batches.evidence)
    assert state.with_served("1", told(a=(1.0, 150, 5)), 0.01) == state, "nothing new is no batch"


def test_another_bound_and_a_state_without_a_test_start_one_with_all_answers():
    state = WatchState().with_served("1", told(a=(1.0, 100, 0)), 0.01)
    other = state.with_served("1", told(a=(1.0, 150, 5)), 0.05).detectors["1"]
    assert (other.at_most, other.batches, other.total) == (0.05, 1, Answered(150, 5))
    content = json.loads(state.to_json())
    del content["detectors"], content["latencies"]  # as version 0.1 wrote it
    read = WatchState.from_json(json.dumps(content)).with_served("1", told(a=(1.0, 150, 5)), 0.01).detectors["1"]
    assert (read.batches, read.total) == (1, Answered(150, 5))


def test_rows_are_numbered_by_version_and_digest():
    state = WatchState().with_rows("1", "aa").with_rows("1", "bb").with_rows("2", "bb").with_rows("1", "aa")
    assert state.rows == {"1": ("aa", "bb"), "2": ("bb",)}


def test_it_comes_back_as_it_was_written():
    state = (
        WatchState().with_served("1", told(a=(1.5, 100, 2)), 0.01).with_served("2", told(), 0.01).with_rows("1", "aa")
    )
    assert WatchState.from_json(state.to_json()) == state
    for broken in ("[]", "{}", '{"served": {"1": {}}, "rows": {}}', "no json"):
        with pytest.raises((ValueError, KeyError, TypeError)):
            WatchState.from_json(broken)
    latencies = {"counts": {}, "versions": [], "over_budget": {}, "compared": {}}
    assert json.loads(WatchState().to_json()) == {"served": {}, "rows": {}, "detectors": {}, "latencies": latencies}
