"""P-tuning: train the embeddings of virtual tokens through a small network (Liu et al. 2021, arXiv 2103.10385).

The network ties the virtual tokens together while they are trained; the computed embeddings are saved, and no network. It moves the start
values instead of replacing them (Razdaibiedina et al. 2023, arXiv 2305.03937), so that a training starts from real tokens, or from a
saved version.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

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
    "PtuningOptions",
    "apply",
    "learning_rate",
    "resolve",
    "save",
    "serving",
    "start_options",
    "virtual_tokens",
]


class PtuningOptions(VirtualTokenOptions):
    """Options of P-tuning."""

    encoder_hidden_size: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto", description="Width of the network that moves the embeddings; auto: the base's hidden size."
    )


Options = PtuningOptions


def resolve(options: PtuningOptions, base: BaseFacts, reasons: Reasons) -> PtuningOptions:
    """Return the options without ``auto``. Raises BaseModelError for options that this base cannot take."""
    width = options.encoder_hidden_size
    if width == "auto":
        width = base.hidden_size
        reasons["options.encoder_hidden_size"] = f"{width}: the base's hidden size, as in PEFT"
    return options.model_copy(
        update={"num_virtual_tokens": resolve_count(options, base, reasons), "encoder_hidden_size": width}
    )


def learning_rate(base: BaseFacts) -> tuple[float, str]:
    """Return the ``auto`` learning rate and its reason."""
    if base.hidden_size < 512:
        return 1e-2, "measured on tiny models (benchmarks/results/adaptation_rates.md)"
    return 1e-3, "no tuned rate is published; PEFT's 1e-4 gives 35.0 % on GSM8K (method_comparison, Llama 3.2 3B)"


def start_options(adapter_config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the number of virtual tokens. The network is a new one, which starts with no move, so its width may change."""
    return {"num_virtual_tokens": adapter_config["num_virtual_tokens"]}


def apply(model: PreTrainedModel, options: PtuningOptions, *, seed: int, folder: Path) -> PeftModel:
    """Wrap the base. Until the first step, it answers as with the start tokens in front of the prompt."""
    return apply_tuner(model, options, seed=seed, encoder_hidden_size=int(options.encoder_hidden_size))
