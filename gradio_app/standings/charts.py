"""Charts of votes as SVG text: no script, colours from the page, a sentence for readers who do not see the picture.

Positions are percentages of the picture's width, so that it fits a phone without smaller letters. ``style.css`` styles
the classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from gradio_app.standings.json import thinned
from mlflow_finetune_plugin.evaluation.results import Interval

_LEFT, _WIDE = 9.0, 89.0
"""Percent of the width: where the paths begin, after the scale's numbers, and how wide they are."""
_TOP, _HIGH, _ALL = 10, 180, 226
"""Pixels: where the paths begin, how high they are, the whole picture with its scale."""


@dataclass(frozen=True)
class ForestRow:
    """One bar of a forest plot.

    Args:
        label: the text before the bar.
        interval: the estimate and its ends, an infinite end is drawn to the edge; None draws no bar.
        text: the text after the bar, which also says why there is no bar.
        heading: a title above this row and those that follow.
    """

    label: str
    interval: Interval | None
    text: str
    heading: str = ""


@dataclass(frozen=True)
class Scale:
    """A scale from ``low`` to ``high`` with a line at ``middle``, and the texts at these three positions."""

    low: float
    middle: float
    high: float
    marks: tuple[str, str, str]

    def percent(self, value: float) -> float:
        """Return the position of a value; a value beyond an end is at that end."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(2 + 96 * share, 2)


WIN_RATE = Scale(0.0, 0.5, 1.0, ("0%", "50%", "100%"))


def forest_plot(rows: Sequence[ForestRow], *, caption: str, scale: Scale = WIN_RATE) -> str:
    """Return a table whose rows hold a bar each: estimate, interval, and the line that means no difference."""
    marks = "".join(f"<span>{escape(mark)}</span>" for mark in scale.marks)
    body = "".join(_forest_row(row, scale) for row in rows)
    return (
        f'<table class="mf-forest"><caption>{escape(caption)}</caption>'
        f'<thead><tr><td></td><td><div class="mf-marks" aria-hidden="true">{marks}</div></td><td></td></tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


@dataclass(frozen=True)
class PathLabels:
    """The names of the two lines and of the steps along them."""

    candidate: str
    champion: str
    steps: str


def path_plot(
    evidence_for: Sequence[float],
    evidence_against: Sequence[float],
    *,
    boundary: float,
    minimum: int,
    labels: PathLabels,
) -> str:
    """Return both capitals after every score on a logarithmic scale, the deciding boundary and the minimum number of scores.

    ``evidence_for`` and ``evidence_against`` begin before the first score.
    """
    frame = _frame(evidence_for, evidence_against, boundary, minimum)
    steps = len(evidence_for) - 1
    description = (
        f"Evidence after {steps} {labels.steps}: {evidence_for[-1]:.3g} that {labels.candidate} is preferred, "
        f"{evidence_against[-1]:.3g} that {labels.champion} is; {boundary:.3g} decides."
    )
    sides = (("b", evidence_against), ("a", evidence_for))
    lines = "".join(
        f'<polyline class="mf-line-{side}" points="{frame.points(values)}" vector-effect="non-scaling-stroke"/>'
        for side, values in sides
    )
    ends = "".join(
        f'<circle class="mf-dot-{side}" cx="{frame.across(steps)}%" cy="{frame.height(values[-1])}" r="4"/>'
        for side, values in sides
    )
    return (
        f'<figure class="mf-path"><svg role="img" aria-label="{escape(description)}" width="100%" height="{_ALL}">'
        f"{_grid(frame, labels.steps)}{_bounds(frame, boundary, minimum)}"
        f'<svg x="{_LEFT}%" y="0" width="{_WIDE}%" height="{_ALL}" viewBox="0 0 1000 {_ALL}" '
        f'preserveAspectRatio="none" overflow="visible">{lines}</svg>{ends}</svg>'
        f'<figcaption><span class="mf-key mf-key-a">{escape(labels.candidate)} is preferred</span>'
        f'<span class="mf-key mf-key-b">{escape(labels.champion)} is preferred</span>'
        f"{_minimum_key(minimum, labels.steps)}</figcaption></figure>"
    )


# path ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Frame:
    """Positions in a path: steps 0 to ``longest`` across, powers of ten ``low`` to ``high`` up."""

    longest: int
    low: int
    high: int

    def height(self, value: float) -> float:
        share = (math.log10(max(value, 10.0**self.low)) - self.low) / (self.high - self.low)
        return round(_TOP + _HIGH * (1 - share), 1)

    def across(self, step: float) -> float:
        return round(_LEFT + _WIDE * step / self.longest, 2)

    def points(self, values: Sequence[float]) -> str:
        """Return a line's points in a picture 1000 wide."""
        return " ".join(f"{1000 * i / self.longest:.1f},{self.height(values[i])}" for i in thinned(len(values)))


def _frame(evidence_for: Sequence[float], evidence_against: Sequence[float], boundary: float, minimum: int) -> _Frame:
    """Return a frame from 0.1 or the lowest value (at least a millionth) to a little above the boundary or the highest."""
    lowest = max(min([0.1, *evidence_for, *evidence_against]), 1e-6)
    highest = max([boundary, *evidence_for, *evidence_against])
    low, high = math.floor(math.log10(lowest)), math.ceil(math.log10(highest) + 0.1)
    return _Frame(max(len(evidence_for) - 1, minimum, 1), low, max(high, low + 1))


def _grid(frame: _Frame, steps: str) -> str:
    decades = range(frame.low, frame.high + 1, max(1, math.ceil((frame.high - frame.low) / 5)))
    lines = "".join(
        f'<line class="mf-grid" x1="{_LEFT}%" x2="{_LEFT + _WIDE}%" y1="{frame.height(10.0**d)}" '
        f'y2="{frame.height(10.0**d)}"/>'
        f'<text x="{_LEFT - 1}%" y="{frame.height(10.0**d) + 4}" text-anchor="end">{10.0**d:g}</text>'
        for d in decades
    )
    scale = "".join(
        f'<text x="{frame.across(step)}%" y="{_TOP + _HIGH + 16}" text-anchor="{anchor}">{step:,}</text>'
        for step, anchor in ((0, "middle"), (frame.longest, "end"))
    )
    return f'{lines}{scale}<text x="{_LEFT + _WIDE / 2}%" y="{_ALL - 4}" text-anchor="middle">{escape(steps)}</text>'


def _bounds(frame: _Frame, boundary: float, minimum: int) -> str:
    at, least = frame.height(boundary), ""
    if minimum > 1:
        x = frame.across(minimum)
        least = f'<line class="mf-least" x1="{x}%" x2="{x}%" y1="{_TOP}" y2="{_TOP + _HIGH}"/>'
    return (
        f'{least}<line class="mf-boundary" x1="{_LEFT}%" x2="{_LEFT + _WIDE}%" y1="{at}" y2="{at}"/>'
        f'<text class="mf-decides" x="{_LEFT + 1}%" y="{at - 5}">decides: {boundary:.3g}</text>'
    )


def _minimum_key(minimum: int, steps: str) -> str:
    if minimum <= 1:
        return ""
    return f'<span class="mf-key mf-key-least">decides not before {minimum:,} {escape(steps)}</span>'


# forest --------------------------------------------------------------------------------------------------------------


def _forest_row(row: ForestRow, scale: Scale) -> str:
    heading = f'<tr><th colspan="3" scope="colgroup">{escape(row.heading)}</th></tr>' if row.heading else ""
    return (
        f'{heading}<tr><th scope="row">{escape(row.label)}</th><td>{_bar(row, scale)}</td>'
        f"<td>{escape(row.text)}</td></tr>"
    )


def _bar(row: ForestRow, scale: Scale) -> str:
    middle = scale.percent(scale.middle)
    line = f'<line class="mf-middle" x1="{middle}%" x2="{middle}%" y1="0" y2="24"/>'
    if row.interval is None:
        return f'<svg role="img" aria-label="{escape(row.text)}" width="100%" height="24">{line}</svg>'
    low, at, high = (scale.percent(end) for end in (row.interval.low, row.interval.value, row.interval.high))
    side = "mf-even"
    if row.interval.low > scale.middle:
        side = "mf-ahead"
    elif row.interval.high < scale.middle:
        side = "mf-behind"
    return (
        f'<svg role="img" aria-label="{escape(f"{row.label}: {row.text}")}" class="{side}" width="100%" height="24">'
        f'{line}<line class="mf-bar" x1="{low}%" x2="{high}%" y1="12" y2="12"/>'
        f'<circle class="mf-dot" cx="{at}%" cy="12" r="5"/></svg>'
    )
