"""Move the aliases of a registered model, one process at a time, and record every move.

The room promises that a process which is killed anywhere leaves the old state or the new one: the next call completes
the move or drops it. Moves need only the registry, so a rollback works without the version's run or its files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.promotion.moves.audit import Record, history
    from mlflow_finetune_plugin.promotion.moves.intent import MoveEvidence
    from mlflow_finetune_plugin.promotion.moves.lease import Lease
    from mlflow_finetune_plugin.promotion.moves.move import promote_version, roll_back
    from mlflow_finetune_plugin.promotion.moves.settlement import Move, settle

__all__ = ["Lease", "Move", "MoveEvidence", "Record", "history", "promote_version", "roll_back", "settle"]

__getattr__ = names_on_first_use(
    __name__,
    {
        "Lease": "lease",
        "Move": "settlement",
        "MoveEvidence": "intent",
        "Record": "audit",
        "history": "audit",
        "promote_version": "move",
        "roll_back": "move",
        "settle": "settlement",
    },
)
