"""The stages of a run, one module each, with what the stage records in MLflow.

``plan``, ``train``, ``log``, ``prove`` and ``register`` are the stages of a training run in this order (``pipeline.py``);
``evaluate`` is the only stage of an evaluation. The room promises that a stage takes what the stages before it returned,
that a run can be resumed after any of them, and that the report of a run names every file and metric it leaves behind.
``records`` holds what several stages record.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_finetune_plugin.stages.context import RunContext as RunContext
    from mlflow_finetune_plugin.stages.log import LoggedRun as LoggedRun
    from mlflow_finetune_plugin.stages.plan import PlannedRun as PlannedRun
    from mlflow_finetune_plugin.stages.train import TrainedAdapter as TrainedAdapter
    from mlflow_finetune_plugin.stages.train import TrainedRun as TrainedRun

_MODULES = {
    "LoggedRun": "log",
    "PlannedRun": "plan",
    "RunContext": "context",
    "TrainedAdapter": "train",
    "TrainedRun": "train",
}

__all__ = ["LoggedRun", "PlannedRun", "RunContext", "TrainedAdapter", "TrainedRun"]


def __getattr__(name: str) -> Any:
    """Import a public name's module when it is first used: the stages import torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
