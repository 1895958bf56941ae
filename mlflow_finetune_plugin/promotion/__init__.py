"""Judge versions by a policy that was recorded before their evidence existed, and move aliases safely.

The room promises that an alias moves only when the verdict is to promote, that every decision and move is a run in the
experiment ``NAME.promotions`` with its report, and that a process which is killed at any point leaves the old state or
the new one. The rules are in ``gate``, the moves of aliases in ``promotion.moves``, trials on live traffic in
``promotion.canary``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_finetune_plugin.promotion.decision import Decision as Decision
    from mlflow_finetune_plugin.promotion.move_history import MoveHistory as MoveHistory
    from mlflow_finetune_plugin.promotion.move_history import history as history
    from mlflow_finetune_plugin.promotion.request import PromotionOptions as PromotionOptions
    from mlflow_finetune_plugin.promotion.request import promote as promote
    from mlflow_finetune_plugin.promotion.result import PromotionResult as PromotionResult
    from mlflow_finetune_plugin.promotion.undo import RollbackResult as RollbackResult
    from mlflow_finetune_plugin.promotion.undo import rollback as rollback

__all__ = [
    "Decision",
    "MoveHistory",
    "PromotionOptions",
    "PromotionResult",
    "RollbackResult",
    "history",
    "promote",
    "rollback",
]

_MODULES = {
    "Decision": "decision",
    "MoveHistory": "move_history",
    "PromotionOptions": "request",
    "PromotionResult": "result",
    "RollbackResult": "undo",
    "history": "move_history",
    "promote": "request",
    "rollback": "undo",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, because the modules behind it import scipy and matplotlib."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
