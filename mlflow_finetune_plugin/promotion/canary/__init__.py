"""Try a candidate on a growing share of the requests before it becomes champion.

The room promises that the share grows only while no regression is shown, and that the split is restored when the canary
ends without a promotion: at a regression, a signal or an error at once, after a kill by the next command.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_finetune_plugin.promotion.canary.course import CanaryCourse as CanaryCourse
    from mlflow_finetune_plugin.promotion.canary.course import CanaryStep as CanaryStep
    from mlflow_finetune_plugin.promotion.canary.interruption import Interruption as Interruption
    from mlflow_finetune_plugin.promotion.canary.run import CanaryPlan as CanaryPlan
    from mlflow_finetune_plugin.promotion.canary.run import run_canary as run_canary

__all__ = [
    "CanaryCourse",
    "CanaryPlan",
    "CanaryStep",
    "Interruption",
    "run_canary",
]

_MODULES = {
    "CanaryCourse": "course",
    "CanaryPlan": "run",
    "CanaryStep": "course",
    "Interruption": "interruption",
    "run_canary": "run",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, because the modules behind it import numpy and MLflow."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
