"""Prompt tuning: train the embeddings of virtual tokens in front of every prompt (Lester et al. 2021, arXiv 2104.08691).

All weights of the base stay as they are, and the adapter has a few thousand numbers. The virtual tokens start as real ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.adaptations._virtual_tokens import (
    MODEL_CODE,
    VirtualTokenOptions,
    apply_tuner,
    resolve_count,
    save,
    serving,
    virtual_tokens,
)
from mlflow_finetune_plugin.base_models.facts import BaseFacts, Reasons

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

__all__ = [
    "MODEL_CODE",
    "Options",
    "PromptOptions",
    "apply",
    "learning_rate",
    "resolve",
    "save",
    "serving",
    "virtual_tokens",
]


class PromptOptions(VirtualTokenOptions):
    """Options of prompt tuning."""


Options = PromptOptions


def resolve(options: PromptOptions, base: BaseFacts, reasons: Reasons) -> PromptOptions:
    """Return the options without ``auto``. Raises BaseModelError for options that this base cannot take."""
    return options.model_copy(update={"num_virtual_tokens": resolve_count(options, base, reasons)})


def learning_rate(base: BaseFacts) -> tuple[float, str]:
    """Return the ``auto`` learning rate and its reason."""
    if base.hidden_size < 512:
        return 3e-2, "measured on tiny models (benchmarks/results/adaptation_rates.md)"
    return 1e-2, "the lower end of TRL's advice for prompt tuning, 1e-2 to 3e-2"


def apply(model: PreTrainedModel, options: PromptOptions, *, seed: int, folder: Path) -> PeftModel:
    """Wrap the base. Until the first step, it answers as with the start tokens in front of the prompt."""
    return apply_tuner(model, options, seed=seed)
