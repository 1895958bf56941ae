"""Limit what one API key contributes to the failures of a version, so that its holder cannot bring about a rollback.

The failures of the key with the most failures count as one. Let that key have m failures of t in total, and a hostile key a
of them. Then t - m + 1 failures count, which is at most t - a + 1: whatever a hostile key sends, it adds at most one failure
to those of all others. A version that fails for several keys loses only the failures of one of them.
"""

from __future__ import annotations

from collections import Counter


class KeyFailures:
    """The failures of one version."""

    def __init__(self) -> None:
        self._total = 0
        self._by_key: Counter[str] = Counter()

    def add(self, key: str | None) -> None:
        """Add a failure. ``key`` is the name of the API key; None where the failures of a key are not limited."""
        self._total += 1
        if key is not None:
            self._by_key[key] += 1

    @property
    def counted(self) -> int:
        """The number of failures that count. It never falls, because a failure raises total and maximum by at most one."""
        return self._total - self.left_out

    @property
    def left_out(self) -> int:
        """The number of failures that do not count."""
        return max(0, max(self._by_key.values(), default=0) - 1)
