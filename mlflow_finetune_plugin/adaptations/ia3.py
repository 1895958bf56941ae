"""IA3: learned factors on keys, values and the feed-forward's inner activations (Liu et al. 2022, arXiv 2205.05638), on PEFT.

Each layer gets one vector of factors that start at one. Where one fused layer computes queries, keys and values, its whole
output is scaled. Experts that are stacked in one tensor are not changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mlflow_finetune_plugin.adaptations import task_type
from mlflow_finetune_plugin.adaptations._adapter_files import write_adapter
from mlflow_finetune_plugin.adaptations._blocks import (
    DOWN_PROJECTIONS,
    Block,
    are_fused,
    check_names,
    decoder_blocks,
    endings,
    keys_and_values,
    linears_in,
)
from mlflow_finetune_plugin.base_models.facts import BaseFacts, Reasons
from mlflow_finetune_plugin.errors import BaseModelError
from mlflow_finetune_plugin.methods import Serving
from mlflow_finetune_plugin.section import Auto, Section

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peft import PeftModel
    from transformers import PreTrainedModel

_FIX = "name the layers in options.key_value_modules and options.feedforward_modules, or use -P adaptation=lora"


class IA3Options(Section):
    """IA3Options of IA3."""

    key_value_modules: list[str] | Auto = Field(
        "auto", description="Endings of the linear layers whose output is scaled; auto: keys and values of every block."
    )
    feedforward_modules: list[str] | Auto = Field(
        "auto",
        description="Endings of the linear layers whose input is scaled; auto: the feed-forward's last, [] is none.",
    )


Options = IA3Options


def resolve(options: IA3Options, base: BaseFacts, reasons: Reasons) -> IA3Options:
    """Return the options without ``auto``. Raises BaseModelError for options that this base cannot take."""
    update = {
        "key_value_modules": options.key_value_modules,
        "feedforward_modules": options.feedforward_modules,
    }
    for option, value in update.items():
        if value != "auto" and (value or option == "key_value_modules"):
            check_names(base, option, value, base.linear_shapes)
    blocks = decoder_blocks(base, fix=_FIX) if "auto" in update.values() else []
    if options.key_value_modules == "auto":
        targets = endings(base, blocks, [name for block in blocks for name in keys_and_values(base, block, fix=_FIX)])
        update["key_value_modules"] = targets
        reasons["options.key_value_modules"] = f"{', '.join(targets)}: keys and values in {len(blocks)} blocks" + (
            ", and the queries that are fused with them" if are_fused(targets) else ""
        )
    if options.feedforward_modules == "auto":
        targets = endings(base, blocks, [name for block in blocks for name in _down_projections(base, block)])
        update["feedforward_modules"] = targets
        reasons["options.feedforward_modules"] = (
            f"{', '.join(targets)}: the last layer of every feed-forward"
            if targets
            else "none: the experts are stacked in one tensor, which is not changed"
        )
    _check_disjoint(base, update["key_value_modules"], update["feedforward_modules"])
    return options.model_copy(update=update)


def learning_rate(base: BaseFacts) -> tuple[float, str]:
    """Return the ``auto`` learning rate and its reason. LoRA's is far too low, because the factors start at one."""
    if base.hidden_size < 512:
        return 2e-2, "measured on tiny models (benchmarks/results/adaptation_rates.md)"
    return 5e-3, "PEFT's tuned IA3 on Llama 3.2 3B: 45.5 % on GSM8K instead of 31.1 % at 1e-4 (method_comparison)"


def serving(options: IA3Options) -> Serving:
    """Return ``convertible``: vLLM has no IA3 layers, but each scaled matrix has a low-rank approximation."""
    return "convertible"


def has_effect(weights: Mapping[str, Any]) -> bool:
    """Return whether any saved factor differs from one."""
    return any(bool((tensor != 1).any()) for tensor in weights.values())


def apply(model: PreTrainedModel, options: IA3Options, *, seed: int, folder: Path) -> PeftModel:
    """Wrap the base. ``seed`` is unused: every factor starts at one."""
    from peft import IA3Config, get_peft_model
    from transformers.pytorch_utils import Conv1D

    config = IA3Config(
        target_modules=[*options.key_value_modules, *options.feedforward_modules],
        feedforward_modules=list(options.feedforward_modules),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type=task_type(model),
    )
    return get_peft_model(model, config)  # type: ignore[no-any-return]


def save(model: PeftModel, options: IA3Options, folder: Path, *, start: Path) -> None:
    """Write PEFT's two files."""
    write_adapter(model, folder)


def _down_projections(base: BaseFacts, block: Block) -> list[str]:
    layers = linears_in(base, block.feedforward)
    projections = [name for name in layers if name.rsplit(".", 1)[-1] in DOWN_PROJECTIONS]
    if not projections and not base.has_stacked_experts:
        layer_list = ", ".join(block.inside(name) for name in layers)
        raise BaseModelError(
            f"the last layer of {block.feedforward} is not recognised among its layers ({layer_list}) in this {base.model_type}; fix: {_FIX}"
        )
    return projections


def _check_disjoint(base: BaseFacts, key_values: Any, feedforward: Any) -> None:
    both = [n for n in base.linear_shapes if base.is_target(n, key_values) and base.is_target(n, feedforward)]
    if both:
        raise BaseModelError(
            f"{both[0]} is in both options.key_value_modules and options.feedforward_modules; fix: remove it from one of them"
        )
