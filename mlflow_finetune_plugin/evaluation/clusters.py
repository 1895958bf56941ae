"""Which held-out rows are one draw: those of one group, with one question, or cut from one line of a file."""

from __future__ import annotations

import json
from collections.abc import Sequence

from mlflow_finetune_plugin.evaluation.results import EvalRow


def clusters_of(rows: Sequence[EvalRow]) -> tuple[str, ...] | None:
    """Return the cluster of each row; None where no two rows share one.

    Rows with the same question or group, or cut from the same line of a file, are not independent, so they share a cluster.
    """
    root: dict[str, str] = {}

    def find(key: str) -> str:
        while root.setdefault(key, key) != key:
            key = root[key]
        return key

    keys = []
    for row in rows:
        line = json.dumps([row.source, row.line])
        question = json.dumps(list(row.messages), ensure_ascii=False) if row.messages else line
        root[find(question)] = find(line)
        if row.group is not None:
            root[find(json.dumps({"group": row.group}))] = find(line)
        keys.append(line)
    clusters = tuple(find(key) for key in keys)
    return clusters if len(set(clusters)) < len(clusters) else None


def group_clusters(rows: Sequence[EvalRow]) -> tuple[str, ...] | None:
    """Return ``clusters_of`` rows that have groups, and None for rows without."""
    return clusters_of(rows) if any(row.group is not None for row in rows) else None
