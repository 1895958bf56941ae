"""Measure interference: what each task loses in a mixture, against an adapter trained on that task alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mlflow_finetune_plugin.evaluation.clusters import group_clusters
from mlflow_finetune_plugin.evaluation.comparison import AnswerSet, compare, load_metrics
from mlflow_finetune_plugin.evaluation.proof import adapter_answers
from mlflow_finetune_plugin.evaluation.results import EvalReport, EvalRow, MetricResult


def interference(
    proof: EvalReport, rows: Sequence[EvalRow], singles: Mapping[str, AnswerSet], *, metrics: Sequence[str], seed: int
) -> dict[str, tuple[MetricResult, ...]]:
    """Compare the mixture's adapter with the single-task adapters.

    Args:
        proof: The proof of the mixture's adapter.
        rows: The rows of ``proof`` in their order.
        singles: The answers of each single-task adapter to the rows of its task, in their order.
        metrics: Packaged names or paths of metric files.
        seed: Seed of the bootstrap.

    Returns:
        The results of each task, with the single-task adapter as ``base``. A gain below 0 is interference.
    """
    modules = load_metrics(metrics)
    mixture = adapter_answers(proof, rows)
    results = {}
    for task, single in singles.items():
        at = [i for i, row in enumerate(rows) if row.task == task]
        of_task = [rows[i] for i in at]
        results[task] = tuple(
            compare(module, of_task, single, mixture.at(at), seed, group_clusters(of_task))[0] for module in modules
        )
    return results
