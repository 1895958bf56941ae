"""The built-in objectives: what a training learns from. Each file satisfies ``methods.Objective``.

The room promises that an objective and an adaptation know nothing of each other, so that every pair can be trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # mypy checks here that every file satisfies the contract
    from mlflow_finetune_plugin.methods import ObjectiveModule
    from mlflow_finetune_plugin.objectives import dpo, grpo, kto, orpo, reward, rloo, sft

    _CHECKED: list[ObjectiveModule] = [dpo, grpo, kto, orpo, reward, rloo, sft]

__all__ = ["dpo", "grpo", "kto", "orpo", "reward", "rloo", "sft"]
