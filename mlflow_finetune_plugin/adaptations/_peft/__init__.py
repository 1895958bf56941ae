"""Adaptations that PEFT implements and that need no code of their own: one table, one row for each.

The room promises that every row meets the contract of adaptations with the pinned PEFT, and that PEFT's other methods are refused
with a reason.
"""

from __future__ import annotations

from mlflow_finetune_plugin.adaptations._peft.modules import MODULES
from mlflow_finetune_plugin.adaptations._peft.refused import REFUSED
from mlflow_finetune_plugin.adaptations._peft.row import PeftMethod
from mlflow_finetune_plugin.adaptations._peft.table import METHODS

__all__ = ["METHODS", "MODULES", "REFUSED", "PeftMethod"]
