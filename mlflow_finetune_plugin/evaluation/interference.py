"""What learning several tasks at once costs each of them: the mixture's adapter against one trained on the task alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mlflow_finetune_plugin.evaluation.comparison import AnswerSet, compare, load_metrics
from mlflow_finetune_plugin.evaluation.results import EvalReport, EvalRow, MetricResult


def interference(
    proof: EvalReport, rows: Sequence[EvalRow], singles: Mapping[str, AnswerSet], *, metrics: Sequence[str], seed: int
) -> dict[str, tuple[MetricResult, ...]]:
    """Per task: ``base`` is the single-task adapter, ``adapter`` the mixture's; a gain below 0 is interference.

    ``rows`` are those of ``proof``, in their order; ``singles[task]`` answers that task's rows, in their order.
    """
    modules = load_metrics(metrics)
    mixture = AnswerSet(
        [str(record["adapter_answer"]) for record in proof.rows],
        np.array(
            [r["adapter_nats_per_token"] * len(row.completion_ids) for r, row in zip(proof.rows, rows, strict=True)]
        ),
    )
    results = {}
    for task, single in singles.items():
        at = [i for i, row in enumerate(rows) if row.task == task]
        of_task = [rows[i] for i in at]
        results[task] = tuple(compare(module, of_task, single, mixture.at(at), seed)[0] for module in modules)
    return results
