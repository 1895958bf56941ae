"""Compare two models on the same rows: every metric with a paired interval of the gain."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mlflow_finetune_plugin.errors import ConfigError, DataError
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
        rejected_nats: That of each row's worse answer, (rows,), NaN where a row has none; None where no row has one.
        rewards: The answers' rewards by metric name, (rows,) each, NaN where one is missing; empty where they were not scored.
        answer_ids: The tokens of each generated answer, where they are needed.
    """

    answers: list[str]
    nats: np.ndarray
    rejected_nats: np.ndarray | None = None
    rewards: Mapping[str, np.ndarray] = field(default_factory=dict)
    answer_ids: list[list[int]] = field(default_factory=list)

    @classmethod
    def of_rewards(cls, better: np.ndarray, worse: np.ndarray) -> AnswerSet:
        """Return the rewards of pairs, both (rows,), for metrics of pairs: a reward takes the place of a log-probability."""
        return cls([""] * len(better), -better, -worse)

    @property
    def mean_tokens(self) -> float:
        """The mean length of the generated answers, in tokens; only where ``answer_ids`` are there."""
        return float(np.mean([len(ids) for ids in self.answer_ids]))

    def at(self, rows: Sequence[int]) -> AnswerSet:
        """Return the answers of some of the rows."""
        rejected = None if self.rejected_nats is None else self.rejected_nats[list(rows)]
        rewards = {name: values[list(rows)] for name, values in self.rewards.items()}
        return AnswerSet([self.answers[i] for i in rows], self.nats[list(rows)], rejected, rewards)


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
    check_pairs([module], rows)
    if module.reads_rewards and (at := _scored_rows(base, adapter, module.name)) != list(range(len(rows))):
        return _compare_scored(module, rows, base, adapter, seed, clusters, confidence, at)
    references: list[Any] = [row.reference for row in rows]
    base_predictions: list[Any] = base.answers
    adapter_predictions: list[Any] = adapter.answers
    if module.reads_likelihoods:
        references = [float(len(row.completion_ids)) for row in rows]
        base_predictions, adapter_predictions = base.nats.tolist(), adapter.nats.tolist()
    if module.reads_pairs:
        references = [0.0] * len(rows)
        base_predictions, adapter_predictions = _margins(base), _margins(adapter)
    if module.reads_rewards:
        references = [0.0] * len(rows)
        base_predictions, adapter_predictions = (side.rewards[module.name].tolist() for side in (base, adapter))
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


def check_pairs(modules: Sequence[MetricModule], rows: Sequence[EvalRow]) -> None:
    """Raise DataError where a metric compares the answers of pairs, and a row is not a pair. No model has answered yet."""
    names = [module.name for module in modules if module.reads_pairs]
    if names and any(row.rejected is None for row in rows):
        raise DataError(
            f"the metric {names[0]} compares a better with a worse answer, and not every held-out row is a pair; "
            "fix: leave it out of eval.metrics, or hold out pairs"
        )


def _margins(side: AnswerSet) -> list[float]:
    """Return by how many nats each row's better answer is more likely than its worse one."""
    assert side.rejected_nats is not None  # check_pairs
    return (side.rejected_nats - side.nats).tolist()  # type: ignore[no-any-return]


def _scored_rows(base: AnswerSet, adapter: AnswerSet, metric: str) -> list[int]:
    """Return the rows that have a reward on both sides."""
    if metric not in base.rewards or metric not in adapter.rewards:
        raise DataError(
            f"the metric {metric} needs answers that were scored by the rewards of a training; "
            "fix: name another metric, or prove the version in a run with rewards"
        )
    missing = np.isnan(base.rewards[metric]) | np.isnan(adapter.rewards[metric])
    return np.flatnonzero(~missing).tolist()  # type: ignore[no-any-return]


def _compare_scored(
    module: MetricModule,
    rows: Sequence[EvalRow],
    base: AnswerSet,
    adapter: AnswerSet,
    seed: int,
    clusters: Sequence[Hashable] | None,
    confidence: float,
    at: list[int],
) -> tuple[MetricResult, dict[str, list[float]]]:
    """Compare the rows ``at``, which have a reward on both sides. The scores of the others are NaN."""
    if not at:
        gain = Interval(0.0, -math.inf, math.inf, "none: no row has a reward on both sides")
        return MetricResult(module.name, math.nan, math.nan, gain, module.higher_is_better, 0), {}
    result, scores = compare(
        module,
        [rows[i] for i in at],
        base.at(at),
        adapter.at(at),
        seed,
        None if clusters is None else [clusters[i] for i in at],
        confidence,
    )
    whole = {name: np.full(len(rows), np.nan) for name in scores}
    for name, values in scores.items():
        whole[name][at] = values
    return result, {name: values.tolist() for name, values in whole.items()}


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
