"""Inline SVG pictures of the data page; colours come from its style."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT, _BASE = 760, 180, 150
_ROW, _NAMES = 26, 220


def columns(bins: Sequence[tuple[str, int]], kind: str, name: str) -> str:
    """A histogram: one column per (label, count)."""
    top, width = max(count for _, count in bins), min(80.0, _WIDTH / len(bins))
    drawn = []
    for i, (label, count) in enumerate(bins):
        height, x = (_BASE - 24) * count / top, i * width
        drawn.append(
            f'<rect class="{kind}" x="{x + 2:.1f}" y="{_BASE - height:.1f}" width="{width - 4:.1f}" height="{height:.1f}"/>'
            f'<text x="{x + width / 2:.1f}" y="{_BASE - height - 5:.1f}" text-anchor="middle">{count:,}</text>'
            f'<text x="{x + 2:.1f}" y="{_BASE + 18}">{escape(label)}</text>'
        )
    axis = f'<line class="axis" x1="0" y1="{_BASE}" x2="{_WIDTH}" y2="{_BASE}"/>'
    return _svg(_HEIGHT, name, axis + "".join(drawn))


def bars(rows: Sequence[tuple[str, int, int]]) -> str:
    """Two bars per (label, train, eval), each side on its own scale."""
    most = [max([1, *(row[1] for row in rows)]), max([1, *(row[2] for row in rows)])]
    room = _WIDTH - _NAMES - 70
    drawn = []
    for i, (label, *both) in enumerate(rows):
        counts = [int(count) for count in both]
        y = i * _ROW
        short = label if len(label) <= 30 else label[:29] + "…"
        drawn.append(
            f'<text x="{_NAMES - 10}" y="{y + 16}" text-anchor="end">{escape(short)}<title>{escape(label)}</title></text>'
        )
        for side, kind in enumerate(("train", "eval")):
            length = room * counts[side] / most[side]
            top, height = (y + 3, 11) if side == 0 else (y + 15, 5)
            drawn.append(f'<rect class="{kind}" x="{_NAMES}" y="{top}" width="{length:.1f}" height="{height}"/>')
        drawn.append(
            f'<text x="{_NAMES + room * counts[0] / most[0] + 6:.1f}" y="{y + 14}">{counts[0]:,} / {counts[1]:,}</text>'
        )
    return _svg(len(rows) * _ROW + 4, "rows per label", "".join(drawn))


def _svg(height: int, name: str, inside: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" role="img" aria-label="{escape(name)}">{inside}</svg>'
