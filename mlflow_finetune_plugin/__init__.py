"""Fine-tuning of open language models as an MLflow project backend.

``import mlflow_finetune_plugin as ft`` offers the Python API: ``ft.run``, ``ft.plan``, ``ft.check_data``, ``ft.evaluate`` and
the other functions of ``mlflow_finetune_plugin.api``. The import itself is light: no torch, no transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_finetune_plugin.api import CheckedData as CheckedData
    from mlflow_finetune_plugin.api import CheckResult as CheckResult
    from mlflow_finetune_plugin.api import ExportedModel as ExportedModel
    from mlflow_finetune_plugin.api import MoveHistory as MoveHistory
    from mlflow_finetune_plugin.api import PromotionResult as PromotionResult
    from mlflow_finetune_plugin.api import RollbackResult as RollbackResult
    from mlflow_finetune_plugin.api import RunningService as RunningService
    from mlflow_finetune_plugin.api import RunPlan as RunPlan
    from mlflow_finetune_plugin.api import RunResult as RunResult
    from mlflow_finetune_plugin.api import VotesReport as VotesReport
    from mlflow_finetune_plugin.api import check_champion as check_champion
    from mlflow_finetune_plugin.api import check_data as check_data
    from mlflow_finetune_plugin.api import evaluate as evaluate
    from mlflow_finetune_plugin.api import export as export
    from mlflow_finetune_plugin.api import history as history
    from mlflow_finetune_plugin.api import plan as plan
    from mlflow_finetune_plugin.api import promote as promote
    from mlflow_finetune_plugin.api import report_votes as report_votes
    from mlflow_finetune_plugin.api import rollback as rollback
    from mlflow_finetune_plugin.api import run as run
    from mlflow_finetune_plugin.api import serve as serve
    from mlflow_finetune_plugin.api import submit as submit

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *importlib.import_module(f"{__name__}.api").__all__])
