"""Measure an adapter against its base on held-out rows: answers, metrics, paired 95 % intervals and forgetting.

The room promises that base and adapter are measured on the same rows in the same way. Names are imported on first use, so
that importing this package stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.evaluation.comparison import AnswerSet, compare
    from mlflow_finetune_plugin.evaluation.metric_modules import load_metric
    from mlflow_finetune_plugin.evaluation.proof import measure, prove
    from mlflow_finetune_plugin.evaluation.results import EvalReport, EvalRow, Interval, MetricResult
    from mlflow_finetune_plugin.evaluation.scale import describe_forgetting

__all__ = [
    "AnswerSet",
    "EvalReport",
    "EvalRow",
    "Interval",
    "MetricResult",
    "compare",
    "describe_forgetting",
    "load_metric",
    "measure",
    "prove",
]

__getattr__ = names_on_first_use(
    __name__,
    {
        "AnswerSet": "comparison",
        "EvalReport": "results",
        "EvalRow": "results",
        "Interval": "results",
        "MetricResult": "results",
        "compare": "comparison",
        "describe_forgetting": "scale",
        "load_metric": "metric_modules",
        "measure": "proof",
        "prove": "proof",
    },
)
