"""Read the group of a row, and hold out whole groups.

Rows of one conversation, document or customer resemble each other. If some of them are trained on, the others are no longer
unseen, and as evidence they count less than as many independent rows.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlflow_finetune_plugin.data.conversations.row_faults import NULL_FIELD, RowFault
from mlflow_finetune_plugin.data.conversations.split import Split, sorted_hashes, wanted_rows
from mlflow_finetune_plugin.errors import DataError


def check_group(rows: Sequence[Mapping[str, Any]], column: str) -> None:
    """Raise DataError where the first rows of a file have no such column."""
    present = list(dict.fromkeys(str(name) for row in rows for name in row))
    if column not in present:
        near = difflib.get_close_matches(column, present, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DataError(
            f"data.group: the file has no column {column!r}; {hint}fix: name one of its columns: {', '.join(present)}"
        )


def group_of(row: Mapping[str, Any], column: str) -> str:
    """Return the group of a row as text. Raises RowFault where it has none."""
    value = row.get(column)
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        raise RowFault(NULL_FIELD, f"{column}, which data.group names")
    if isinstance(value, str):
        return _digest(value.encode("utf-8", "surrogatepass")) if value.startswith("data:") else value
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=_as_text)


def _as_text(value: object) -> str:
    return _digest(value) if isinstance(value, bytes) else str(value)


def _digest(content: bytes) -> str:
    """Return a short name for a picture, because the group of each held-out row is recorded."""
    return hashlib.sha256(content).hexdigest()


def split_of_groups(
    group_hashes: array[int], fraction: float | None, max_rows: int | None, seed: int, column: str
) -> Split:
    """Hold out whole groups, as many as fit into the rows to hold out, and at least one.

    Args:
        group_hashes: ``hash_text`` of every training row's group.
        fraction: Share of the rows to hold out, from 0 to 1; None means a tenth, at most 500 rows.
        max_rows: Most rows to hold out; None means no limit.
        seed: The seed that the hashes were made with; named in the description.
        column: The column of the groups; named in the description.
    """
    target, share_text = wanted_rows(len(group_hashes), fraction, max_rows)
    groups, rows = np.unique(sorted_hashes(group_hashes), return_counts=True)
    fitting = int(np.searchsorted(np.cumsum(rows), target, side="right"))
    count = min(max(1, fitting), len(groups) - 1)
    if count <= 0:
        return Split(0, f"{share_text}: none, because all rows are of one group ({column})")
    more = ", more than asked because they are one group" if not fitting else ""
    return Split(
        int(groups[count]),
        f"{share_text}: {int(rows[:count].sum()):,} of {len(group_hashes):,} rows{more}, {count:,} of {len(groups):,} groups "
        f"({column}), by a hash with seed {seed}; the rows of a group are on one side",
    )
