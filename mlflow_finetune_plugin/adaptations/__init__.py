"""The built-in adaptations: how a training changes the base. Each file satisfies ``methods.AdaptationModule``.

The room promises that whatever differs between two adaptations is in their files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # mypy checks here that every file satisfies the contract
    from mlflow_finetune_plugin.adaptations import bottleneck, ia3, lora, qlora
    from mlflow_finetune_plugin.methods import AdaptationModule

    _CHECKED: list[AdaptationModule] = [bottleneck, ia3, lora, qlora]

__all__ = ["bottleneck", "ia3", "lora", "qlora"]
