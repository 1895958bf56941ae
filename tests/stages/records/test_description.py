"""The lines for people of a proof without an interval."""

import math

import pytest

from mlflow_finetune_plugin.evaluation.results import EvalReport, Interval, MetricResult
from mlflow_finetune_plugin.stages.records.description import metric_line, no_interval_line


def proof(method, low=-math.inf, high=math.inf):
    metric = MetricResult("exact_match", 0.2, 0.6, Interval(0.4, low, high, method), True, 12)
    return EvalReport(metrics=(metric,), forgetting=None, rows=())


def test_too_few_groups_are_explained_with_the_ways_out():
    line = no_interval_line(proof("none: 3 clusters are too few"), of_votes=True)
    assert line.startswith(
        "the gain has no interval (3 clusters are too few), because these are held-out votes of few groups"
    )
    assert "fix: a larger data.eval, a file of other rows as data.eval, or let people's votes decide" in line
    assert "held-out rows of few groups" in no_interval_line(proof("none: 3 clusters are too few"), of_votes=False)
    assert metric_line(proof("none: 3 clusters are too few").metrics[0]).endswith(
        "gain +0.4 (no interval: 3 clusters are too few)"
    )


@pytest.mark.parametrize(
    "report",
    [
        proof("bootstrap of 8 clusters", 0.1, 0.7),
        proof("Tango 1998 score", 0.1, 0.7),
        proof("none: one row has no spread"),
    ],
)
def test_other_proofs_have_no_such_line(report):
    assert no_interval_line(report, of_votes=True) is None
