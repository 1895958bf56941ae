"""Measure an adapter against its base on held-out rows: answers, metrics, paired 95 % intervals and forgetting.

The room promises that base and adapter are measured on the same rows in the same way. Names are imported on first use, so
that importing this package stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_finetune_plugin.evaluation.comparison import AnswerSet as AnswerSet
    from mlflow_finetune_plugin.evaluation.comparison import compare as compare
    from mlflow_finetune_plugin.evaluation.metric_modules import load_metric as load_metric
    from mlflow_finetune_plugin.evaluation.proof import measure as measure
    from mlflow_finetune_plugin.evaluation.proof import prove as prove
    from mlflow_finetune_plugin.evaluation.results import EvalReport as EvalReport
    from mlflow_finetune_plugin.evaluation.results import EvalRow as EvalRow
    from mlflow_finetune_plugin.evaluation.results import Interval as Interval
    from mlflow_finetune_plugin.evaluation.results import MetricResult as MetricResult
    from mlflow_finetune_plugin.evaluation.scale import describe_forgetting as describe_forgetting

_MODULES = {
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
}

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


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
