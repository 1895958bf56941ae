"""A rise of failures is seen as soon after many good answers as at the start, and rarely where there is none."""

import numpy as np
import pytest

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.gate.statistics.detectors.failures import FailureDetector
from mlflow_finetune_plugin.gate.statistics.detectors.restarts import share
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered, e_above, failure_rate

BOUNDARY = 20


def series(*batches, at_most=0.01):
    detector = FailureDetector(at_most)
    for answers, failed in batches:
        detector = detector.after(Answered(answers, failed))
    return detector


def test_the_capital_is_that_of_a_test_from_each_batch_on():
    batches = [(40, 0), (30, 2), (50, 1)]
    counts = [Answered(*batch) for batch in batches]
    suffixes = [sum(counts[start + 1 :], counts[start]) for start in range(3)]
    by_hand = sum(share(number) * e_above(rest, 0.01) for number, rest in enumerate(suffixes, 1))
    assert series(*batches).evidence == pytest.approx(by_hand)


@pytest.mark.parametrize("good", [0, 50_000, 200_000])
def test_many_good_answers_before_hide_nothing(good):
    before = [(1000, 2)] * (good // 1000)
    assert series(*before, (100, 5), (100, 5), (100, 5), (100, 5)).evidence >= BOUNDARY
    assert series(*before, (10, 10)).evidence >= BOUNDARY
    if good:
        total = sum((Answered(*batch) for batch in before), Answered(400, 20))
        assert not failure_rate(total, at_most=0.01, alpha=0.05).is_above, "a test of all answers does not see it"


def test_recent_counts_begin_where_the_evidence_did():
    detector = series((1000, 2), (1000, 2), (100, 5), (100, 5))
    assert (detector.recent, detector.total) == (Answered(200, 10), Answered(2200, 14))
    assert series().evidence == 0
    assert series((0, 0)) == series()


@pytest.mark.simulation
@pytest.mark.parametrize("true_rate", [0.001, 0.01])
def test_it_ever_raises_a_false_alarm_in_at_most_alpha_of_all_series(true_rate):
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        detector = FailureDetector(0.01)
        for failed in rng.binomial(25, true_rate, size=100).tolist():
            detector = detector.after(Answered(25, failed))
            if detector.evidence >= BOUNDARY:
                alarms += 1
                break
    assert alarms / 200 <= 0.05


def test_bounds_are_checked():
    with pytest.raises(GateError, match="between 0 and 1"):
        FailureDetector(0)
