import math

import pytest

from mlflow_finetune_plugin.evaluation.plots import plot_gain, plot_loss
from mlflow_finetune_plugin.evaluation.results import EvalReport, Interval, MetricResult


def result(name, gain, rows=400, higher_is_better=True):
    return MetricResult(name, base=0.31, adapter=0.87, gain=gain, higher_is_better=higher_is_better, rows=rows)


def texts_of(figure):
    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def test_gain_figure_has_a_scale_per_metric_and_one_for_forgetting(tmp_path):
    report = EvalReport(
        metrics=(result("exact_match", Interval(0.56, 0.52, 0.60, "")), result("bleu", Interval(-3, -5, 1, ""))),
        forgetting=Interval(0.02, 0.01, 0.03, ""),
        rows=(),
    )
    figure = plot_gain(report)
    texts = texts_of(figure)
    assert len(figure.axes) == 3
    assert "exact_match\n0.31 → 0.87" in texts
    assert "+0.56  [+0.52, +0.6]" in texts
    assert "nats per token, more is worse" in texts
    for ax in figure.axes:
        low, high = ax.get_xlim()
        assert low < 0 < high
    figure.savefig(tmp_path / "gain.png")
    assert (tmp_path / "gain.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "report",
    [
        EvalReport((result("f1", Interval(0.5, -math.inf, math.inf, ""), rows=1),), None, ()),
        EvalReport((result("f1", Interval(0.0, 0.0, 0.0, "")),), None, ()),
        EvalReport((), None, ()),
    ],
    ids=["unbounded", "no width", "no metric"],
)
def test_gain_figure_draws_without_a_width(report):
    plot_gain(report).canvas.draw()


def test_loss_figure_shows_training_and_evaluation():
    texts = texts_of(plot_loss([(1, 3.0), (2, 2.0), (3, 1.5)], [(3, 1.6)]))
    assert {"optimiser step", "loss, nats per token", "train, running mean", "eval"} <= set(texts)


def test_loss_figure_without_history_is_empty_axes():
    plot_loss([]).canvas.draw()
