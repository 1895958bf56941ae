"""Draw the figures of a run: gains with their intervals, and the loss over steps. Without pyplot there is no global state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mlflow_finetune_plugin.evaluation.results import EvalReport, Interval, MetricResult
from mlflow_finetune_plugin.evaluation.scale import describe_forgetting

_BETTER, _WORSE, _UNDECIDED = "#1a7f37", "#b42318", "#57606a"
_TRAIN, _EVAL = "#0969da", "#bc4c00"
_UNITS = {
    **dict.fromkeys(
        ("accuracy", "exact_match", "f1", "preference_accuracy", "rougeL", "token_f1"), "on a scale of 0 to 1"
    ),
    **dict.fromkeys(("bleu", "chrf"), "on a scale of 0 to 100"),
    "perplexity": "less perplexity",
}


def plot_gain(report: EvalReport) -> Figure:
    """Draw the gain of each metric with its 95 % interval, one row per metric; right of zero is better.

    Green means that the whole interval is better, red that it is worse, grey that it is undecided. The last row is
    forgetting, where right of zero means that the adapter predicts general text worse.
    """
    entries = [(f"{m.name}\n{m.base:.3g} → {m.adapter:.3g}", _gain_label(m.name), m.gain, True) for m in report.metrics]
    if report.forgetting is not None:
        label = f"forgetting\n{describe_forgetting(report.forgetting.value)}"
        entries.append((label, "nats per token, more is worse", report.forgetting, False))
    figure = _figure(width=7.5, height=0.9 + 0.95 * len(entries))
    axes: list[Axes] = list(figure.subplots(len(entries), 1, squeeze=False)[:, 0]) if entries else []
    for ax, (label, unit, interval, higher_is_better) in zip(axes, entries, strict=True):
        _draw_interval(ax, label, unit, interval, higher_is_better)
    rows = report.metrics[0].rows if report.metrics else len(report.rows)
    figure.suptitle(
        f"Adapter against {report.over.removeprefix('the ')}, 95 % intervals, held-out rows: {rows:,}", fontsize=11
    )
    return figure


def plot_tasks(results: Mapping[str, MetricResult], what: str) -> Figure:
    """Draw the gain of one metric with its 95 % interval for each task; ``what`` names the two models for the title."""
    figure = _figure(width=7.5, height=1.4 + 0.36 * len(results))
    ax = figure.subplots()
    ax.axvline(0, color="black", linewidth=1)
    for row, result in enumerate(results.values()):
        low, high = min(result.gain.low, result.gain.value), max(result.gain.high, result.gain.value)
        reach = [[result.gain.value - low], [high - result.gain.value]]
        color = _color(result.gain, higher_is_better=True)
        ax.errorbar([result.gain.value], [row], xerr=reach, fmt="o", color=color, capsize=4, elinewidth=2, markersize=6)
    labels = [f"{task}  {r.base:.3g} → {r.adapter:.3g}" for task, r in results.items()]
    ax.set_yticks(range(len(results)), labels, fontsize=8)
    ax.invert_yaxis()
    name = next(iter(results.values())).name
    ax.set_xlabel(f"{name}: {_gain_label(name)}", fontsize=8)
    ax.grid(axis="x", alpha=0.25)
    ax.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle(f"Task by task, {what}, 95 % intervals", fontsize=11)
    return figure


def plot_loss(history: Sequence[tuple[int, float]], eval_history: Sequence[tuple[int, float]] = ()) -> Figure:
    """Draw the training loss over optimiser steps, thin as logged and bold as running mean, and the evaluation loss."""
    figure = _figure(width=7.5, height=4)
    ax = figure.subplots()
    if history:
        steps, losses = zip(*history, strict=True)
        ax.plot(steps, losses, color=_TRAIN, alpha=0.3, linewidth=1)
        ax.plot(steps, _running_mean(losses), color=_TRAIN, linewidth=2, label="train, running mean")
    if eval_history:
        steps, losses = zip(*eval_history, strict=True)
        ax.plot(steps, losses, color=_EVAL, marker="o", linewidth=1.5, label="eval")
    ax.set_xlabel("optimiser step")
    ax.set_ylabel("loss, nats per token")
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    if history or eval_history:
        ax.legend(frameon=False)
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_interval(ax: Axes, label: str, unit: str, interval: Interval, higher_is_better: bool) -> None:
    is_bounded = math.isfinite(interval.low) and math.isfinite(interval.high)
    low, high = (interval.low, interval.high) if is_bounded else (interval.value, interval.value)
    color = _color(interval, higher_is_better)
    reach = [[max(interval.value - low, 0)], [max(high - interval.value, 0)]]
    ax.axvline(0, color="black", linewidth=1)
    ax.errorbar([interval.value], [0], xerr=reach, fmt="o", color=color, capsize=5, elinewidth=2, markersize=7)
    bounds = f"[{interval.low:+.3g}, {interval.high:+.3g}]" if is_bounded else "[unbounded: one row]"
    ax.set_title(f"{interval.value:+.3g}  {bounds}", loc="right", fontsize=9, color=color, pad=3)
    span = max(0.0, high) - min(0.0, low) or 1.0
    ax.set_xlim(min(0.0, low) - 0.08 * span, max(0.0, high) + 0.08 * span)
    ax.set_ylim(-1, 1)
    ax.set_yticks([0], [label], fontsize=9)
    ax.set_xlabel(unit, fontsize=8, labelpad=1)
    ax.tick_params(axis="x", labelsize=8)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", alpha=0.25)
    ax.spines[["top", "right", "left"]].set_visible(False)


def _color(interval: Interval, higher_is_better: bool) -> str:
    if interval.low > 0:
        return _BETTER if higher_is_better else _WORSE
    if interval.high < 0:
        return _WORSE if higher_is_better else _BETTER
    return _UNDECIDED


def _gain_label(name: str) -> str:
    return f"gain, {_UNITS[name]}" if name in _UNITS else "gain"


def _running_mean(values: Sequence[float]) -> list[float]:
    """Return the mean around each value, over a twentieth of the history or 5 values, fewer at the ends."""
    reach = max(2, len(values) // 40)
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]
