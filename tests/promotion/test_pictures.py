"""A decision's picture shows every finding that has a number, with its bound."""

from mlflow_finetune_plugin.evaluation.results import Interval
from mlflow_finetune_plugin.gate.criteria import Finding
from mlflow_finetune_plugin.promotion.pictures import plot_intervals

GAIN = Finding("gain", "pass", "", 0.0, Interval(0.1, 0.02, 0.2, "paired"))
MUST_PASS = Finding("must-pass must-pass.jsonl", "reject", "", 0.7, details={"score": 0.57})
NOT_MEASURED = Finding("latency p95", "hold", "latency was not measured", 800.0)


def test_a_score_without_an_interval_is_shown_beside_its_bound():
    gain, must_pass = plot_intervals([GAIN, NOT_MEASURED, MUST_PASS]).axes
    assert gain.get_title(loc="right") == "0.1 [0.02, 0.2], bound 0"
    assert must_pass.get_title(loc="left") == "must-pass must-pass.jsonl"
    assert must_pass.get_title(loc="right") == "0.57, bound 0.7"
    low, high = must_pass.get_xlim()
    assert low < 0.57
    assert high > 0.7


def test_without_numbers_there_is_no_picture():
    assert plot_intervals([NOT_MEASURED]) is None
