"""How a worker on a CPU gets its memory. Standard library only; called before torch is imported."""

from __future__ import annotations

import os


def ask_for_huge_pages() -> None:
    """Has torch align large blocks to huge pages, which glibc 2.36 packs far better than blocks aligned to 64 bytes.

    A step of 25M parameters held 1,315 MiB instead of 1,737, one of 1,000-token rows 1,267 instead of 1,495, in the same time
    (2026-11-21). Mapping every block of 1 MiB by itself would hold still less, and take 1.6 times as long. A setting of the user's own stands.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's own switch, read at its first allocation
