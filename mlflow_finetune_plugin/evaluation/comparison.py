"""Two sides on the same rows: every metric with a paired interval of the difference."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.evaluation.intervals import (
    paired_binary_interval,
    paired_bootstrap_interval,
    paired_recompute_interval,
)
from mlflow_finetune_plugin.evaluation.metric_modules import MetricModule, load_metric
from mlflow_finetune_plugin.evaluation.results import EvalRow, Interval, MetricResult


@dataclass(frozen=True)
class AnswerSet:
    """What one model gives on the held-out rows: an answer, and the nats of the reference answer, per row."""

    answers: list[str]
    nats: np.ndarray  # (rows,)

    def at(self, rows: Sequence[int]) -> AnswerSet:
        """The same on some of the rows."""
        return AnswerSet([self.answers[i] for i in rows], self.nats[list(rows)])


def load_metrics(names: Sequence[str]) -> list[MetricModule]:
    """Packaged names or paths of metric files. Raises ConfigError for a name that stands twice."""
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
) -> tuple[MetricResult, dict[str, list[float]]]:
    """The metric's result, and its score per row and side where one row alone has a score.

    ``clusters`` names what each row was drawn with; where they are given, the interval of a metric that is no plain score per
    row resamples them instead of rows.

    Raises what a metric file of the user's raises.
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
            gain = paired_binary_interval(module.score(base_statistics), module.score(adapter_statistics))
        else:
            gain = paired_bootstrap_interval(
                _by_cluster(base_statistics, clusters),
                _by_cluster(adapter_statistics, clusters),
                module.score,
                module.higher_is_better,
                seed,
            )
        if module.scores_single_rows:
            row_scores[f"base_{module.name}"] = module.score(base_statistics).tolist()
            row_scores[f"adapter_{module.name}"] = module.score(adapter_statistics).tolist()
    else:
        base_value = module.compute(base_predictions, references)
        adapter_value = module.compute(adapter_predictions, references)
        gain = _recomputed_gain(module, base_predictions, adapter_predictions, references, seed, clusters)
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
    """Every metric on each task's own rows, in the order of the tasks' first rows; empty when there is one task."""
    places: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        places.setdefault(row.task, []).append(i)
    if len(places) < 2:
        return {}
    return {
        task: tuple(compare(module, [rows[i] for i in at], base.at(at), adapter.at(at), seed)[0] for module in modules)
        for task, at in places.items()
    }


def _recomputed_gain(
    module: MetricModule,
    base: list[Any],
    adapter: list[Any],
    references: list[Any],
    seed: int,
    clusters: Sequence[Hashable] | None,
) -> Interval:
    sign = 1.0 if module.higher_is_better else -1.0
    members = _members(clusters if clusters is not None else range(len(references)))

    def value(side: list[Any], rows: np.ndarray) -> float:
        return module.compute([side[i] for i in rows], [references[i] for i in rows])

    def gain(drawn: np.ndarray) -> float:
        rows = np.concatenate([members[i] for i in drawn])
        return sign * (value(adapter, rows) - value(base, rows))

    return paired_recompute_interval(gain, len(members), seed)


def _members(clusters: Sequence[Hashable]) -> list[np.ndarray]:
    """The rows of each cluster, in the order of their first rows."""
    rows_by_cluster: dict[Hashable, list[int]] = {}
    for row, cluster in enumerate(clusters):
        rows_by_cluster.setdefault(cluster, []).append(row)
    return [np.array(rows) for rows in rows_by_cluster.values()]


def _by_cluster(statistics: np.ndarray, clusters: Sequence[Hashable] | None) -> np.ndarray:
    """(rows, k) -> (clusters, k): a metric of sums is the same of either."""
    if clusters is None:
        return statistics
    return np.array([statistics[rows].sum(axis=0) for rows in _members(clusters)])
