"""The Python API: one function for each thing that a user does.

``import mlflow_finetune_plugin as ft`` offers them all.

Every function returns a frozen object, prints nothing, and raises a ``FinetuneError`` whose message names the fix.
Importing is light: torch, transformers and the serving stack are imported by the call that needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_finetune_plugin.api.data_check import CheckedData, check_data
    from mlflow_finetune_plugin.api.model_export import ExportedModel, export
    from mlflow_finetune_plugin.api.promotion import check_champion, history, promote, rollback
    from mlflow_finetune_plugin.api.run_plan import RunPlan, plan
    from mlflow_finetune_plugin.api.service import serve
    from mlflow_finetune_plugin.api.training_run import RunResult, evaluate, run, submit
    from mlflow_finetune_plugin.promotion.move_history import MoveHistory
    from mlflow_finetune_plugin.promotion.result import PromotionResult
    from mlflow_finetune_plugin.promotion.undo import RollbackResult
    from mlflow_finetune_plugin.serving.process import RunningService
    from mlflow_finetune_plugin.votes.report import VotesReport, report_votes
    from mlflow_finetune_plugin.watch.result import CheckResult

_HOMES = {
    "CheckResult": "watch.result",
    "CheckedData": "api.data_check",
    "ExportedModel": "api.model_export",
    "MoveHistory": "promotion.move_history",
    "PromotionResult": "promotion.result",
    "RollbackResult": "promotion.undo",
    "RunPlan": "api.run_plan",
    "RunResult": "api.training_run",
    "RunningService": "serving.process",
    "VotesReport": "votes.report",
    "check_champion": "api.promotion",
    "check_data": "api.data_check",
    "evaluate": "api.training_run",
    "export": "api.model_export",
    "history": "api.promotion",
    "plan": "api.run_plan",
    "promote": "api.promotion",
    "report_votes": "votes.report",
    "rollback": "api.promotion",
    "run": "api.training_run",
    "serve": "api.service",
    "submit": "api.training_run",
}

__all__ = [
    "CheckResult",
    "CheckedData",
    "ExportedModel",
    "MoveHistory",
    "PromotionResult",
    "RollbackResult",
    "RunPlan",
    "RunResult",
    "RunningService",
    "VotesReport",
    "check_champion",
    "check_data",
    "evaluate",
    "export",
    "history",
    "plan",
    "promote",
    "report_votes",
    "rollback",
    "run",
    "serve",
    "submit",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"mlflow_finetune_plugin.{_HOMES[name]}"), name)
