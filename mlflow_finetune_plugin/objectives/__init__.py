"""The built-in objectives: what a training learns from. Each file satisfies ``methods.Objective``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # mypy checks here that every file satisfies the contract
    from mlflow_finetune_plugin.methods import Objective
    from mlflow_finetune_plugin.objectives import sft

    _CHECKED: list[Objective] = [sft]
