"""The built-in adaptations: how a training changes the base. Each file satisfies ``methods.AdaptationModule``.

The room promises that whatever differs between two adaptations is in their files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # mypy checks here that every file satisfies the contract
    from transformers import PreTrainedModel

    from mlflow_finetune_plugin.adaptations import bottleneck, full, ia3, lora, prefix, prompt, ptuning, qlora
    from mlflow_finetune_plugin.methods import AdaptationModule

    _CHECKED: list[AdaptationModule] = [bottleneck, full, ia3, lora, prefix, prompt, ptuning, qlora]

__all__ = ["bottleneck", "full", "ia3", "lora", "prefix", "prompt", "ptuning", "qlora", "task_type"]


def task_type(model: PreTrainedModel) -> str:
    """Return the ``task_type`` of PEFT's config for a model. With ``SEQ_CLS`` PEFT trains and saves the score head, too."""
    from mlflow_finetune_plugin.internals.transformers import score_head

    return "CAUSAL_LM" if score_head(model) is None else "SEQ_CLS"
