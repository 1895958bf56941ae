"""Count the tokens of prepared rows: totals, quantiles and a histogram."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

_BIN_EDGES = (0, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)

_QUANTILES = {"min": 0.0, "p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True)
class TokenReport:
    """Token counts and the lengths of examples, in tokens."""

    examples: int
    tokens: int
    loss_tokens: int
    length_histogram: tuple[tuple[int, int, int], ...]
    length_quantiles: Mapping[str, int]


def token_report(lengths: Mapping[int, int], loss_tokens: int) -> TokenReport:
    """Summarize token counts.

    Args:
        lengths: How many examples have each length in tokens.
        loss_tokens: How many tokens carry loss.

    Returns:
        The totals, a histogram of (from, below, examples), and quantiles of the lengths.
    """
    histogram = []
    for low, high in pairwise(_BIN_EDGES):
        within = sum(count for length, count in lengths.items() if low <= length < high)
        if within:
            histogram.append((low, high, within))
    beyond = sum(count for length, count in lengths.items() if length >= _BIN_EDGES[-1])
    if beyond:
        histogram.append((_BIN_EDGES[-1], max(lengths) + 1, beyond))
    return TokenReport(
        examples=sum(lengths.values()),
        tokens=sum(length * count for length, count in lengths.items()),
        loss_tokens=loss_tokens,
        length_histogram=tuple(histogram),
        length_quantiles={name: _quantile(lengths, share) for name, share in _QUANTILES.items()},
    )


def _quantile(lengths: Mapping[int, int], share: float) -> int:
    """Return the shortest length that at least ``share`` of the examples do not exceed; 0 without examples."""
    least = share * sum(lengths.values())
    covered = 0
    for length in sorted(lengths):
        covered += lengths[length]
        if covered >= least:
            return length
    return 0
