"""Bottleneck adapters: small two-layer networks behind attention and feed-forward of every block, on PEFT.

Houlsby et al. 2019 (arXiv 1902.00751) add one behind both, Pfeiffer et al. 2020 (arXiv 2005.00247) behind the
feed-forward only. Each starts as the identity. It contains an activation, so it cannot be merged into the base.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from mlflow_finetune_plugin.adaptations import task_type
from mlflow_finetune_plugin.adaptations._adapter_files import write_adapter
from mlflow_finetune_plugin.adaptations._blocks import check_names, decoder_blocks, endings
from mlflow_finetune_plugin.base_models.facts import BaseFacts, Reasons
from mlflow_finetune_plugin.errors import BaseModelError
from mlflow_finetune_plugin.methods import Serving
from mlflow_finetune_plugin.section import Auto, Section

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peft import PeftModel
    from transformers import PreTrainedModel

MODEL_CODE = (Path(__file__).parent / "_bottleneck_tuner.py",)
"""Copied into every logged model and imported before its adapter is loaded."""

_FIX = "name the modules in options.after_modules, or use -P adaptation=lora"
# These add the residual inside attention or feed-forward, where an adapter behind the module would come too late.
_RESIDUAL_INSIDE = frozenset(("bloom", "mpt"))


class BottleneckOptions(Section):
    """BottleneckOptions of bottleneck adapters."""

    placement: Literal["houlsby", "pfeiffer"] = Field(
        "houlsby", description="houlsby: behind attention and feed-forward; pfeiffer: behind the feed-forward only."
    )
    reduction_factor: Annotated[float, Field(ge=1)] | Auto = Field(
        "auto", description="Hidden size over bottleneck size; auto: 16, less where that leaves a bottleneck below 32."
    )
    activation: Literal["relu", "gelu", "silu", "tanh", "sigmoid", "leaky_relu"] = Field(
        "relu", description="Between the two projections."
    )
    after_modules: list[str] | Auto = Field(
        "auto",
        description="Endings of the modules that have an adapter behind them; auto: by placement, in every block.",
    )


Options = BottleneckOptions


def resolve(options: BottleneckOptions, base: BaseFacts, reasons: Reasons) -> BottleneckOptions:
    """Return the options without ``auto``. Raises BaseModelError for options that this base cannot take."""
    factor = options.reduction_factor
    if factor == "auto":
        factor = _reduction_factor(base, reasons)
    elif factor > base.hidden_size:
        raise BaseModelError(
            f"options.reduction_factor = {factor:g}: is above the hidden size {base.hidden_size}, so no bottleneck remains; "
            f"fix: use at most {base.hidden_size}"
        )
    return options.model_copy(
        update={"reduction_factor": float(factor), "after_modules": _after_modules(options, base, reasons)}
    )


def learning_rate(base: BaseFacts) -> tuple[float, str]:
    """Return the ``auto`` learning rate and its reason."""
    if base.hidden_size < 512:
        return 1e-3, "measured on tiny models (benchmarks/results/adaptation_rates.md)"
    return 3e-4, "the rate of bottleneck adapters on LLaMA 7B and 13B (LLM-Adapters, arXiv 2304.01933)"


def serving(options: BottleneckOptions) -> Serving:
    """Return ``transformers``: vLLM has no layers for it, and an activation cannot be merged into a matrix."""
    return "transformers"


def has_effect(weights: Mapping[str, Any]) -> bool:
    """Return whether any up-projection is not zero; otherwise the adapter is the identity."""
    return any(bool(tensor.any()) for name, tensor in weights.items() if "bottleneck_up" in name)


def apply(model: PreTrainedModel, options: BottleneckOptions, *, seed: int, folder: Path) -> PeftModel:
    """Wrap the base. Its answers are bit for bit those of the base until training."""
    from peft import get_peft_model
    from transformers import set_seed

    from mlflow_finetune_plugin.internals.peft import check_tuners

    check_tuners()  # before the module of the tuner is loaded, whose classes build on PEFT's
    from mlflow_finetune_plugin.adaptations._bottleneck_tuner import BottleneckConfig

    set_seed(seed)
    hidden_size = int(model.config.get_text_config().hidden_size)
    config = BottleneckConfig(
        target_modules=list(options.after_modules),
        hidden_size=hidden_size,
        bottleneck_size=max(1, int(hidden_size / float(options.reduction_factor))),
        activation=options.activation,
        task_type=task_type(model),
    )
    return get_peft_model(model, config)  # type: ignore[no-any-return]


def save(model: PeftModel, options: BottleneckOptions, folder: Path, *, start: Path) -> None:
    """Write PEFT's two files."""
    write_adapter(model, folder)


def _reduction_factor(base: BaseFacts, reasons: Reasons) -> float:
    factor = min(16.0, max(1.0, base.hidden_size / 32))
    reasons["options.reduction_factor"] = f"{factor}: " + (
        "the best in the paper's search (arXiv 2005.00247)"
        if factor == 16
        else f"leaves a bottleneck of {int(base.hidden_size / factor)}, below which tiny models learn little"
    )
    return factor


def _after_modules(options: BottleneckOptions, base: BaseFacts, reasons: Reasons) -> list[str]:
    if options.after_modules != "auto":
        _check_width(base, options.after_modules)
        return options.after_modules
    if base.model_type in _RESIDUAL_INSIDE:
        raise BaseModelError(
            f"{base.model_type} adds the residual inside its modules, so an adapter behind them would come too late; fix: {_FIX}"
        )
    blocks = decoder_blocks(base, fix=_FIX)
    attention = [name for block in blocks for name in block.attention] if options.placement == "houlsby" else []
    targets = endings(base, blocks, [*attention, *(block.feedforward for block in blocks)])
    reasons["options.after_modules"] = f"{', '.join(targets)}: {options.placement}, in {len(blocks)} blocks"
    return targets


def _check_width(base: BaseFacts, targets: list[str]) -> None:
    modules = [name for name in [*base.linear_shapes, *base.other_modules] if name != base.head]
    check_names(base, "after_modules", targets, modules)
    narrow = [
        f"{name} {tuple(shape)}"
        for name, shape in base.linear_shapes.items()
        if base.is_target(name, targets) and shape[1 if base.has_transposed_layers else 0] != base.hidden_size
    ]
    if narrow:
        raise BaseModelError(
            f"options.after_modules: {narrow[0]} does not output the hidden size {base.hidden_size}; fix: leave it out"
        )
