"""Compare two models on the same rows: every metric with a paired interval of the gain."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.evaluation.clusters import group_clusters
from mlflow_finetune_plugin.evaluation.intervals import (
    paired_binary_interval,
    paired_bootstrap_interval,
    paired_recompute_interval,
    widest,
)
from mlflow_finetune_plugin.evaluation.metric_modules import MetricModule, load_metric
from mlflow_finetune_plugin.evaluation.results import EvalRow, Interval, MetricResult

_FEWEST_CLUSTERS = 6


@dataclass(frozen=True)
class AnswerSet:
    """What one model answers on the held-out rows.

    Attributes:
        answers: The generated answer of each row.
        nats: The negative log-probability of each row's reference answer, (rows,).
    """

    answers: list[str]
    nats: np.ndarray

    def at(self, rows: Sequence[int]) -> AnswerSet:
        """Return the answers of some of the rows."""
        return AnswerSet([self.answers[i] for i in rows], self.nats[list(rows)])


def load_metrics(names: Sequence[str]) -> list[MetricModule]:
    """Load metrics by packaged name or file path. Raise ConfigError for a name that occurs twice."""
    modules = [load_metric(name) for name in names]
    stems = [module.name for module in modules]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise ConfigError(
            [f"metric {stem!r} is listed twice; fix: list it once, or rename the metric file" for stem in twice]
        )
    return modules


def compare(
    module: MetricModule,
    rows: Sequence[EvalRow],
    base: AnswerSet,
    adapter: AnswerSet,
    seed: int,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> tuple[MetricResult, dict[str, list[float]]]:
    """Compare base and adapter under one metric. An error in a user's metric file is passed on.

    Args:
        module: The metric.
        rows: The held-out rows.
        base: The base's answers to these rows.
        adapter: The adapter's answers to these rows.
        seed: Seed of the bootstrap.
        clusters: The cluster of each row, where rows are not independent. The bootstrap then resamples clusters, and the
            interval of rows of 0 and 1 also holds that of the bootstrap. Fewer than six clusters give no interval: equal
            models win all of five in 3 % of cases.
        confidence: Of the gain's interval, both sides together.

    Returns:
        The result, and the scores of each row by column name if the metric scores single rows.
    """
    references: list[Any] = [row.reference for row in rows]
    base_predictions: list[Any] = base.answers
    adapter_predictions: list[Any] = adapter.answers
    if module.reads_likelihoods:
        references = [float(len(row.completion_ids)) for row in rows]
        base_predictions, adapter_predictions = base.nats.tolist(), adapter.nats.tolist()
    row_scores: dict[str, list[float]] = {}
    if module.has_row_statistics:
        base_statistics = module.row_statistics(base_predictions, references)  # (rows, k)
        adapter_statistics = module.row_statistics(adapter_predictions, references)  # (rows, k)
        base_value = float(module.score(base_statistics.sum(axis=0)))
        adapter_value = float(module.score(adapter_statistics.sum(axis=0)))
        if module.is_binary:
            gain = paired_binary_interval(module.score(base_statistics), module.score(adapter_statistics), confidence)
        if clusters is not None or not module.is_binary:
            resampled = paired_bootstrap_interval(
                _by_cluster(base_statistics, clusters),
                _by_cluster(adapter_statistics, clusters),
                module.score,
                module.higher_is_better,
                seed,
                confidence=confidence,
            )
            if clusters is not None:
                resampled = replace(resampled, method=f"{resampled.method} of {len(set(clusters))} clusters")
            gain = widest(gain, resampled) if module.is_binary else resampled
        if module.scores_single_rows:
            row_scores[f"base_{module.name}"] = module.score(base_statistics).tolist()
            row_scores[f"adapter_{module.name}"] = module.score(adapter_statistics).tolist()
    else:
        base_value = module.compute(base_predictions, references)
        adapter_value = module.compute(adapter_predictions, references)
        gain = _recomputed_gain(module, base_predictions, adapter_predictions, references, seed, clusters, confidence)
    if clusters is not None and len(set(clusters)) < _FEWEST_CLUSTERS:
        gain = Interval(gain.value, -math.inf, math.inf, f"none: {len(set(clusters))} clusters are too few")
    result = MetricResult(
        name=module.name,
        base=base_value,
        adapter=adapter_value,
        gain=gain,
        higher_is_better=module.higher_is_better,
        rows=len(rows),
    )
    return result, row_scores


def compare_tasks(
    modules: Sequence[MetricModule], rows: Sequence[EvalRow], base: AnswerSet, adapter: AnswerSet, seed: int
) -> dict[str, tuple[MetricResult, ...]]:
    """Return every metric on the rows of each task, in the order of the tasks' first rows; empty with a single task."""
    places: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        places.setdefault(row.task, []).append(i)
    if len(places) < 2:
        return {}
    return {
        task: tuple(_of_task(module, [rows[i] for i in at], base.at(at), adapter.at(at), seed) for module in modules)
        for task, at in places.items()
    }


def _of_task(
    module: MetricModule, rows: Sequence[EvalRow], base: AnswerSet, adapter: AnswerSet, seed: int
) -> MetricResult:
    return compare(module, rows, base, adapter, seed, group_clusters(rows))[0]


def _recomputed_gain(
    module: MetricModule,
    base: list[Any],
    adapter: list[Any],
    references: list[Any],
    seed: int,
    clusters: Sequence[Hashable] | None,
    confidence: float,
) -> Interval:
    sign = 1.0 if module.higher_is_better else -1.0
    members = _members(clusters if clusters is not None else range(len(references)))

    def value(side: list[Any], rows: np.ndarray) -> float:
        return module.compute([side[i] for i in rows], [references[i] for i in rows])

    def gain(drawn: np.ndarray) -> float:
        rows = np.concatenate([members[i] for i in drawn])
        return sign * (value(adapter, rows) - value(base, rows))

    return paired_recompute_interval(gain, len(members), seed, confidence=confidence)


def _members(clusters: Sequence[Hashable]) -> list[np.ndarray]:
    """Return the rows of each cluster, in the order of their first rows."""
    rows_by_cluster: dict[Hashable, list[int]] = {}
    for row, cluster in enumerate(clusters):
        rows_by_cluster.setdefault(cluster, []).append(row)
    return [np.array(rows) for rows in rows_by_cluster.values()]


def _by_cluster(statistics: np.ndarray, clusters: Sequence[Hashable] | None) -> np.ndarray:
    """Sum the statistics of each cluster, (rows, k) -> (clusters, k). The score of all sums stays the same."""
    if clusters is None:
        return statistics
    return np.array([statistics[rows].sum(axis=0) for rows in _members(clusters)])
