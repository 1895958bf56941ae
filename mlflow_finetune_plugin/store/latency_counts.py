"""The number of answers by their latency: small, exact to 2 %, and the difference of two counts is a count again."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate

RATIO = 1.02
EDGES_MS = (0.0, *(RATIO**index for index in range(1, 800)))
"""The lower edges of the buckets in ms. The last bucket begins at two hours and has no upper end."""


def bucket_of(ms: float) -> int:
    """Return the number of the bucket that a latency belongs to."""
    return bisect_right(EDGES_MS, max(ms, 0.0)) - 1


def edge_from(ms: float) -> int:
    """Return the number of the first edge at or above ``ms``; behind the last edge it is their number."""
    return bisect_left(EDGES_MS, ms)


@dataclass(frozen=True)
class LatencyCounts:
    """Numbers of answers in consecutive buckets from bucket ``first`` on.

    Raises:
        ValueError: The counts are not whole numbers from 0, or do not fit into the buckets.
    """

    first: int = 0
    counts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not all(type(count) is int and count >= 0 for count in (self.first, *self.counts)):
            raise ValueError("its counts of latencies are not whole numbers from 0")
        if self.first + len(self.counts) > len(EDGES_MS):
            raise ValueError(f"its counts of latencies have more than {len(EDGES_MS)} buckets")
        if self.counts and not (self.counts[0] and self.counts[-1]):
            raise ValueError("its counts of latencies begin or end with an empty bucket")

    @classmethod
    def of(cls, times_ms: Iterable[float]) -> LatencyCounts:
        """Count latencies in milliseconds."""
        return cls.of_buckets(Counter(map(bucket_of, times_ms)))

    @classmethod
    def of_buckets(cls, buckets: Mapping[int, int]) -> LatencyCounts:
        """Return the counts of answers by the number of their bucket."""
        filled = [index for index, count in buckets.items() if count]
        if not filled:
            return cls()
        return cls(min(filled), tuple(buckets.get(index, 0) for index in range(min(filled), max(filled) + 1)))

    @property
    def total(self) -> int:
        return sum(self.counts)

    def from_edge(self, edge: int) -> int:
        """Return how many answers took at least as long as ``EDGES_MS[edge]``."""
        return sum(self.counts[max(edge - self.first, 0) :])

    def quantile_bucket(self, share: float) -> int:
        """Return the bucket of the quantile. Raises ValueError without answers."""
        if not self.counts:
            raise ValueError("no answers have no quantile")
        return self.first + bisect_left(list(accumulate(self.counts)), math.ceil(share * self.total))

    def quantile_ms(self, share: float) -> float:
        """Estimate the quantile: the middle of its bucket, at most 1 % off. Raises ValueError without answers."""
        bucket = self.quantile_bucket(share)
        return float(f"{max(EDGES_MS[bucket], 1.0) * math.sqrt(RATIO):.4g}")

    def includes(self, other: LatencyCounts) -> bool:
        """Return whether no bucket of ``other`` has more answers, as where ``other`` was counted earlier."""
        start = other.first - self.first
        if other.counts and not 0 <= start <= len(self.counts) - len(other.counts):
            return False
        return all(count <= self.counts[start + index] for index, count in enumerate(other.counts))

    def __add__(self, other: LatencyCounts) -> LatencyCounts:
        return self._with(other, 1)

    def __sub__(self, other: LatencyCounts) -> LatencyCounts:
        """Return the answers that ``other`` does not have. Raises ValueError if ``other`` has more in a bucket."""
        return self._with(other, -1)

    def _with(self, other: LatencyCounts, sign: int) -> LatencyCounts:
        buckets = Counter({self.first + index: count for index, count in enumerate(self.counts)})
        for index, count in enumerate(other.counts):
            buckets[other.first + index] += sign * count
        return LatencyCounts.of_buckets(buckets)
