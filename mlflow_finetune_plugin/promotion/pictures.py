"""Pictures of a verdict: each interval with its bound, and the votes' evidence with its boundary.

No display is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mlflow_finetune_plugin.evaluation.results import Interval
from mlflow_finetune_plugin.gate.criteria import Finding
from mlflow_finetune_plugin.gate.vote_test import VoteTest
from mlflow_finetune_plugin.gate.watch_findings import WatchFinding

COLORS = {
    **{"pass": "#1a7f37", "reject": "#b42318", "hold": "#9a6700", "noted": "#57606a"},
    **{"keep": "#1a7f37", "roll back": "#b42318", "re-tune": "#9a6700", "not measured": "#57606a"},
}


def plot_intervals(findings: Sequence[Finding | WatchFinding]) -> Figure | None:
    """Plot each finding with a number on its own scale: the estimate, its interval, the bound as a line."""
    plotted = [(finding, interval) for finding in findings if (interval := _interval(finding)) is not None]
    if not plotted:
        return None
    figure = _figure(7.5, 0.7 + 0.95 * len(plotted))
    axes: list[Axes] = list(figure.subplots(len(plotted), 1, squeeze=False)[:, 0])
    for ax, (finding, interval) in zip(axes, plotted, strict=True):
        _draw(ax, finding, interval)
    return figure


def plot_votes(test: VoteTest, *, unit: str, minimum: int, candidate: str = "candidate") -> Figure | None:
    """Plot the evidence for and against the candidate after every score, and the boundary that decides."""
    if not test.counted:
        return None
    figure = _figure(7.5, 3.6)
    ax = figure.subplots()
    at = range(test.counted + 1)
    ax.plot(at, test.evidence_for, color=COLORS["pass"], linewidth=2, label=f"{candidate} better")
    ax.plot(at, test.evidence_against, color=COLORS["reject"], linewidth=2, label=f"{candidate} worse")
    ax.axhline(test.boundary, color="black", linewidth=1, linestyle="--", label=f"decides at {test.boundary:.3g}")
    if test.deciding_look is not None:
        at_look = test.deciding_look.voters
        ax.axvline(
            at_look,
            color=COLORS["pass" if test.outcome == "better" else "reject"],
            label=f"planned look at {at_look} decides",
        )
    if minimum > 1:
        ax.axvline(minimum, color="#57606a", linewidth=1, linestyle=":", label=f"not before {minimum}")
    ax.set_yscale("log")
    ax.set_xlabel("voters, in the order of their first votes" if unit == "voter" else "decisive votes, in order")
    ax.set_ylabel("evidence (capital of the bet)")
    ax.legend(frameon=False, fontsize=8)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def _interval(finding: Finding | WatchFinding) -> Interval | None:
    """Return the interval; a score or a percentile without one gets no width. None: the finding has no number."""
    if finding.interval is not None:
        return finding.interval
    value = finding.details.get("score", finding.details.get("candidate_p95_ms", finding.details.get("p95_ms")))
    return Interval(value, value, value, method="one number") if isinstance(value, float) else None


def _draw(ax: Axes, finding: Finding | WatchFinding, interval: Interval) -> None:
    low, high = (end if math.isfinite(end) else interval.value for end in (interval.low, interval.high))
    color = COLORS[finding.outcome]
    reach = None if finding.interval is None else [[max(interval.value - low, 0)], [max(high - interval.value, 0)]]
    ax.errorbar([interval.value], [0], xerr=reach, fmt="o", color=color, capsize=5, elinewidth=2, markersize=7)
    ends = [low, high]
    if finding.bound is not None:
        ax.axvline(finding.bound, color="black", linewidth=1)
        ends.append(finding.bound)
    span = max(ends) - min(ends) or 1.0
    ax.set_xlim(min(ends) - 0.08 * span, max(ends) + 0.08 * span)
    ax.set_ylim(-1, 1)
    ax.set_yticks([])
    ends_told = "" if finding.interval is None else f" [{interval.low:.4g}, {interval.high:.4g}]"
    bound = "" if finding.bound is None else f", bound {finding.bound:.4g}"
    ax.set_title(finding.name, loc="left", fontsize=9, pad=3)
    ax.set_title(f"{interval.value:.4g}{ends_told}{bound}", loc="right", fontsize=9, color=color, pad=3)
    ax.tick_params(axis="x", labelsize=8)
    ax.grid(axis="x", alpha=0.25)
    ax.spines[["top", "right", "left"]].set_visible(False)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
