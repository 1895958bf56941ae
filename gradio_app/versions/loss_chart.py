"""Draw loss curves as SVG text without script; the colours follow the page's theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from gradio_app.versions.cards import Curve

_WIDTH, _HEIGHT = 480, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 14, 40
_MOST_POINTS = 400
_TICKS = 4


@dataclass(frozen=True)
class Series:
    """A curve with its ``label`` in the legend and its colour, ``side`` a or b."""

    label: str
    side: str
    curve: Curve


def loss_chart(series: Sequence[Series]) -> str:
    """Return the chart, training solid and evaluation dashed, or a sentence where there is nothing to draw."""
    drawn = [each for each in series if each.curve.points]
    if not drawn:
        return '<p class="mf-soft">No loss was logged by the training run.</p>'
    steps = [step for each in drawn for step, _ in each.curve.points]
    losses = [loss for each in drawn for _, loss in each.curve.points]
    axes = _Axes(min(steps), max(steps), min(losses), max(losses))
    lines = "".join(_line(each, axes) for each in drawn)
    left_out = sum(each.curve.left_out for each in drawn)
    note = f'<p class="mf-soft">{left_out:,} values are not drawn: they are not finite.</p>' if left_out else ""
    return (
        f'<svg class="mf-loss" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(described(drawn))}">'
        f"{axes.grid()}{lines}</svg>{_legend(drawn)}{note}"
    )


def described(series: Sequence[Series]) -> str:
    """Return the chart in words."""
    parts = []
    for each in series:
        (first, begin), (last, end) = each.curve.points[0], each.curve.points[-1]
        parts.append(f"{each.label}: {begin:.3g} at step {first:,}, {end:.3g} at step {last:,}")
    return f"Loss by step. {'; '.join(parts)}."


def thinned(points: Sequence[tuple[int, float]], most: int = _MOST_POINTS) -> list[tuple[int, float]]:
    """Return at most ``most`` points, with the lowest and the highest of every stretch, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    stretches, chosen = most // 2, []
    for i in range(stretches):
        stretch = points[len(points) * i // stretches : len(points) * (i + 1) // stretches]
        ends = {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
        chosen += sorted(ends)
    return chosen


@dataclass(frozen=True)
class _Axes:
    first: int
    last: int
    lowest: float
    highest: float

    def x(self, step: int) -> float:
        span = max(1, self.last - self.first)
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (step - self.first) / span

    def y(self, loss: float) -> float:
        low, high = self._range()
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - loss) / (high - low)

    def grid(self) -> str:
        drawn = []
        low, high = self._range()
        size = _step_size(high - low)
        tick = math.ceil(low / size - 1e-9) * size
        while tick <= high + 1e-9 * size:
            y = self.y(tick)
            drawn.append(
                f'<line class="mf-grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.3g}</text>'
            )
            tick += size
        ends = [(self.first, "start"), (self.last, "end")] if self.last > self.first else [(self.first, "start")]
        drawn += [f'<text x="{self.x(s):.1f}" y="{_HEIGHT - 22}" text-anchor="{at}">{s:,}</text>' for s, at in ends]
        drawn.append(f'<text x="{(_LEFT + _WIDTH) / 2:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">step</text>')
        return "".join(drawn)

    def _range(self) -> tuple[float, float]:
        """Return the drawn range of losses: from 0 where the losses come near it, and never empty."""
        low = 0.0 if 0 <= self.lowest < self.highest / 2 else self.lowest
        return low, self.highest if self.highest > low else low + max(abs(low), 1.0) * 0.1


def _step_size(span: float) -> float:
    """Return 1, 2 or 5 times a power of ten, for about _TICKS ticks."""
    rough = span / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if rough <= power * factor * (1 + 1e-9))


def _line(series: Series, axes: _Axes) -> str:
    points = thinned(series.curve.points)
    kind = f"mf-{'eval' if series.curve.name == 'eval' else 'train'} mf-side-{'b' if series.side == 'b' else 'a'}"
    placed = [(axes.x(step), axes.y(loss)) for step, loss in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    dots = placed if (series.curve.name == "eval" and len(placed) <= 40) or len(placed) == 1 else []
    marks = "".join(f'<circle class="mf-dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in dots)
    return f'<polyline class="mf-line {kind}" points="{line}"/>{marks}'


def _legend(series: Sequence[Series]) -> str:
    entries = "".join(
        f'<li><svg class="mf-loss mf-key" viewBox="0 0 28 8" aria-hidden="true"><line class="mf-line '
        f'mf-{"eval" if each.curve.name == "eval" else "train"} mf-side-{"b" if each.side == "b" else "a"}" x1="0" y1="4" x2="28" y2="4"/></svg>'
        f"{escape(each.label)}</li>"
        for each in series
    )
    return f'<ul class="mf-legend">{entries}</ul>'
