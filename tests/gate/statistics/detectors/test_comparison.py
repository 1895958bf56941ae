"""A version that becomes worse than another is seen as soon after many equal answers as at the start."""

import numpy as np
import pytest

from mlflow_finetune_plugin.gate.statistics.detectors.comparison import ComparisonDetector
from mlflow_finetune_plugin.gate.statistics.detectors.restarts import share
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered
from mlflow_finetune_plugin.gate.statistics.failures import FailureTest

ALIKE, WORSE = (Answered(50, 2), Answered(50, 2)), (Answered(50, 15), Answered(50, 2))


def test_the_capital_is_that_of_a_test_from_each_batch_on():
    detector = ComparisonDetector().after([ALIKE]).after([WORSE])
    both, last = FailureTest().after(*ALIKE).after(*WORSE), FailureTest().after(*WORSE)
    assert detector.evidence == pytest.approx(share(1) * both.e_worse + share(2) * last.e_worse)
    assert (detector.batches, detector.candidate, detector.champion) == (2, Answered(100, 17), Answered(100, 4))


def test_routers_of_one_batch_are_compared_each_by_itself():
    confounded = [(Answered(10, 0), Answered(90, 0)), (Answered(90, 45), Answered(10, 5))]
    detector = ComparisonDetector().after(confounded)
    assert detector.evidence < 1, "one router is slow, and most of the candidate's answers are its"
    assert detector.batches == 1
    assert (
        ComparisonDetector().after([(sum((s[0] for s in confounded), Answered(0, 0)), Answered(100, 5))]).evidence > 20
    )


def test_equal_answers_before_hide_nothing():
    detector = ComparisonDetector()
    for _ in range(500):
        detector = detector.after([ALIKE])
    assert detector.evidence < 20
    for _ in range(3):
        detector = detector.after([WORSE])
    assert detector.evidence >= 20


def test_a_batch_without_both_sides_changes_nothing():
    detector = ComparisonDetector().after([ALIKE])
    assert detector.after([]) is detector
    assert detector.after([(Answered(0, 0), Answered(5, 5))]) is detector


@pytest.mark.simulation
def test_it_ever_raises_a_false_alarm_in_at_most_alpha_of_all_series():
    rng, alarms = np.random.default_rng(0), 0
    for _ in range(150):
        detector = ComparisonDetector()
        for rate in rng.beta(1, 15, size=60):
            batch = Answered(20, int(rng.binomial(20, rate))), Answered(40, int(rng.binomial(40, rate)))
            detector = detector.after([batch])
            if detector.evidence >= 20:
                alarms += 1
                break
    assert alarms / 150 <= 0.05
