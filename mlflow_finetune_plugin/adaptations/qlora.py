"""QLoRA: LoRA on a base held in 4 bits (Dettmers et al. 2023, arXiv 2305.14314), on PEFT and bitsandbytes.

The base is quantised to nf4 with double quantisation, or to int8 (``base_model.quantization: int8``), in training and
wherever the adapter is loaded. All options of LoRA apply except the initialisations that change the base.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlflow_finetune_plugin.adaptations.lora import (
    SEES,
    LoraOptions,
    apply,
    has_effect,
    meta_options,
    optimizer,
    resolve,
    save,
    serving,
    start_options,
    vllm_max_lora_rank,
)
from mlflow_finetune_plugin.base_models.facts import BaseFacts

__all__ = [
    "QUANTIZATION",
    "SEES",
    "Options",
    "QloraOptions",
    "apply",
    "has_effect",
    "learning_rate",
    "meta_options",
    "optimizer",
    "resolve",
    "save",
    "serving",
    "start_options",
    "vllm_max_lora_rank",
]

QUANTIZATION = "nf4"
"""The ``base_model.quantization`` that applies when the recipe sets none."""


class QloraOptions(LoraOptions):
    """LoRA's options, where ``init`` excludes the initialisations that change the base's weights."""

    init: Literal["default", "gaussian", "orthogonal"] = Field("default", description="How A and B start.")


Options = QloraOptions


def learning_rate(base: BaseFacts) -> tuple[float, str]:
    """Return the ``auto`` learning rate and its reason: the paper's (table 9), or a measured one below hidden size 512."""
    if base.hidden_size < 512:
        return 2e-3, "measured on tiny models; the paper's smallest base has 7B parameters"
    if base.parameters > 20e9:
        return 1e-4, "QLoRA's for 33B and 65B (arXiv 2305.14314, table 9)"
    return 2e-4, "QLoRA's for 7B and 13B (arXiv 2305.14314, table 9)"
