"""Prefix tuning: train keys and values of virtual tokens in every layer (Li and Liang 2021, arXiv 2101.00190).

Every later token attends to them, and the base's weights stay as they are. They start as the keys and values of real tokens, because a
random start is far from what the base can read. Where one fused layer computes queries, keys and values, its whole output is trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from mlflow_finetune_plugin.adaptations._blocks import check_names, decoder_blocks, endings, keys_and_values
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
from mlflow_finetune_plugin.section import Auto

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

__all__ = [
    "MODEL_CODE",
    "Options",
    "PrefixOptions",
    "apply",
    "learning_rate",
    "resolve",
    "save",
    "serving",
    "virtual_tokens",
]

_FIX = "name the layers in options.key_value_modules, or use -P adaptation=prompt"


class PrefixOptions(VirtualTokenOptions):
    """Options of prefix tuning."""

    key_value_modules: list[str] | Auto = Field(
        "auto",
        description="Endings of the linear layers that compute keys and values; auto: those of every block.",
    )


Options = PrefixOptions


def resolve(options: PrefixOptions, base: BaseFacts, reasons: Reasons) -> PrefixOptions:
    """Return the options without ``auto``. Raises BaseModelError for options that this base cannot take."""
    targets = options.key_value_modules
    if targets == "auto":
        blocks = decoder_blocks(base, fix=_FIX)
        names = [name for block in blocks for name in keys_and_values(base, block, fix=_FIX)]
        targets = endings(base, blocks, names)
        reasons["options.key_value_modules"] = f"{', '.join(targets)}: keys and values in {len(blocks)} blocks"
    else:
        check_names(base, "key_value_modules", targets, base.linear_shapes)
    return options.model_copy(
        update={"num_virtual_tokens": resolve_count(options, base, reasons), "key_value_modules": targets}
    )


def learning_rate(base: BaseFacts) -> tuple[float, str]:
    """Return the ``auto`` learning rate and its reason."""
    if base.hidden_size < 512:
        return 1e-1, "measured on tiny models (benchmarks/results/adaptation_rates.md)"
    return 5e-3, "PEFT's tuned prefix on Llama 3.2 3B: 41.6 % on GSM8K instead of 18.6 % at 1e-3 (method_comparison)"


def apply(model: PreTrainedModel, options: PrefixOptions, *, seed: int, folder: Path) -> PeftModel:
    """Wrap the base. Until the first step, it answers as with the start tokens in front of the prompt."""
    return apply_tuner(model, options, seed=seed, key_value_modules=list(options.key_value_modules))
