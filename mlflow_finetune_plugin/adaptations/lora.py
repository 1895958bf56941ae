"""LoRA: low-rank updates beside frozen weights (Hu et al. 2021, arXiv 2106.09685), on PEFT.

Variants: rsLoRA (arXiv 2312.03732), DoRA (arXiv 2402.09353), the initialisations PiSSA (arXiv 2404.02948), OLoRA
(arXiv 2406.01775) and orthogonal, and LoRA+ with a higher learning rate for B (arXiv 2402.12354). PiSSA and OLoRA change
the base that training starts from. Their result is saved as plain LoRA of twice the rank, which is exact, loads on the
untouched base and is served by vLLM.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from mlflow_finetune_plugin.adaptations import task_type
from mlflow_finetune_plugin.adaptations._adapter_files import write_adapter
from mlflow_finetune_plugin.adaptations._targets import in_parts, target_shapes, without_experts
from mlflow_finetune_plugin.base_models.facts import BaseFacts, Reasons
from mlflow_finetune_plugin.errors import BaseModelError
from mlflow_finetune_plugin.methods import Serving
from mlflow_finetune_plugin.section import Auto, Section

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

SEES = True
"""Whether bases that see can be adapted."""
BASE_CHANGING_INITS = ("pissa", "olora")
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class LoraOptions(Section):
    """LoRA's own options, named as in peft.LoraConfig without the ``lora_`` prefix."""

    rank: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto", description="Rank of the update; auto: 32, at most the smallest layer."
    )
    alpha: Annotated[float, Field(gt=0)] | Auto = Field(
        "auto", description="Scale: the update is multiplied by alpha/rank (alpha/sqrt(rank) with rslora); auto: 32."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the update's input.")
    target_modules: str | list[str] = Field(
        "all-linear",
        description="all-linear, module name endings, or one regular expression; the output head is never adapted.",
    )
    train: list[Literal["language", "projector", "vision"]] = Field(
        ["language"],
        min_length=1,
        description="Of a base that sees: the parts whose layers are adapted; a regular expression in target_modules decides alone.",
    )
    rslora: bool = Field(False, description="Scale by alpha/sqrt(rank) (rsLoRA).")
    dora: bool = Field(
        False, description="Learn magnitude and direction apart (DoRA); vLLM serves it only after conversion."
    )
    init: Literal["default", "gaussian", "orthogonal", "pissa", "olora"] = Field(
        "default", description="How A and B start."
    )
    loraplus_ratio: float | None = Field(
        None, gt=0, description="LoRA+: learning rate of B over that of A; the paper uses 16."
    )


Options = LoraOptions


def resolve(options: LoraOptions, base: BaseFacts, reasons: Reasons) -> LoraOptions:
    """Return the options without ``auto``. Raises BaseModelError for options that this base cannot take."""
    _check_combination(options)
    targets = without_experts(options.target_modules, base, reasons)
    targets = in_parts(targets, base, options.train, reasons)
    shapes = target_shapes(targets, base)
    smallest = min(min(shape) for shape in shapes.values())
    rank = min(32, smallest) if options.rank == "auto" else options.rank
    if options.rank == "auto":
        reasons["options.rank"] = (
            f"{rank}: 32 holds what most single tasks need (Thinking Machines 2025; TRL's guide)"
            + (f", the smallest adapted layer allows {smallest}" if rank < 32 else "")
        )
    if rank > smallest:
        name = next(name for name, shape in shapes.items() if min(shape) == smallest)
        raise BaseModelError(
            f"options.rank = {rank}: must be at most {smallest}, the smaller side of {name} {tuple(shapes[name])}; "
            "fix: lower the rank, or leave that layer out of options.target_modules"
        )
    alpha = options.alpha
    if alpha == "auto":
        alpha = 32.0
        reasons["options.alpha"] = (
            "32: with it the best learning rate hardly depends on the rank (Thinking Machines 2025)"
        )
    if options.init == "orthogonal" and rank % 2:
        raise BaseModelError(
            f"options.rank = {rank}: init orthogonal needs an even rank; fix: use {rank + 1} or {rank - 1}"
        )
    return options.model_copy(update={"rank": rank, "alpha": float(alpha), "target_modules": targets})


def learning_rate(base: BaseFacts) -> tuple[float, str]:
    """Return the ``auto`` learning rate and its reason.

    Tinker's published fit for LoRA: 5e-5 x 10 x (2000 / hidden size) ** p with p = 0.781 for Llama, 0.0775 for Qwen.
    The fit was not measured below hidden size 512. There 2e-3 gave the best result on the embedded base with little
    forgetting (benchmarks/results/learning_rate.md).
    """
    if base.model_type.startswith("qwen"):
        power, source = 0.0775, "Tinker's LoRA fit for Qwen"
    elif base.model_type in ("llama", "mistral", "smollm3"):
        power, source = 0.781, "Tinker's LoRA fit for Llama"
    else:
        return (
            (2e-3, "measured on tiny models")
            if base.hidden_size < 512
            else (2e-4, "TRL's LoRA default; no fit published for this family")
        )
    rate = 5e-4 * (2000 / base.hidden_size) ** power
    if base.hidden_size < 512:
        return 2e-3, "measured on tiny models; below hidden size 512 no fit is published"
    return float(f"{rate:.2g}"), source


def serving(options: LoraOptions) -> Serving:
    """Return ``vllm``, ``convertible`` for DoRA, or ``merge`` for a rank above vLLM's limit."""
    if options.dora:
        return "convertible"
    return "vllm" if vllm_max_lora_rank(options) is not None else "merge"


def vllm_max_lora_rank(options: LoraOptions) -> int | None:
    """Return the smallest ``--max-lora-rank`` with which vLLM accepts the saved adapter, or None where it never does.

    The rules are those of vllm 0.32 (lora/peft_helper.py, config/lora.py): no DoRA. Every initialisation is accepted,
    because those that change the base are saved as plain LoRA of twice the rank.
    """
    if options.dora:
        return None
    rank = 32 if options.rank == "auto" else options.rank
    saved = 2 * rank if options.init in BASE_CHANGING_INITS else rank
    return next((ceiling for ceiling in VLLM_RANKS if saved <= ceiling), None)


def meta_options(options: LoraOptions) -> LoraOptions:
    """Return options of the same shapes with an initialisation that reads no weights."""
    return options.model_copy(update={"init": "default"})


def start_options(adapter_config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return rank, scale, layers and variant as they were saved.

    The adapter of PiSSA or OLoRA was saved as plain LoRA of twice the rank, and is continued as that. Raises BaseModelError
    for an adapter whose layers differ in rank or scale.
    """
    uneven = [key for key in ("rank_pattern", "alpha_pattern") if adapter_config.get(key)]
    if uneven:
        raise BaseModelError(
            f"its {uneven[0]} gives some layers a rank or scale of their own, which the options of lora cannot express; "
            "fix: start from a version of this package"
        )
    is_all = options.get("target_modules") == "all-linear"
    targets = "all-linear" if is_all else adapter_config["target_modules"]
    return {
        "rank": adapter_config["r"],
        "alpha": adapter_config["lora_alpha"],
        "target_modules": targets,
        "rslora": bool(adapter_config.get("use_rslora", False)),
        "dora": bool(adapter_config.get("use_dora", False)),
        "init": "default",
    }


def has_effect(weights: Mapping[str, Any]) -> bool:
    """Return whether any B is not zero. B starts at zero, and with B = 0 the update is zero."""
    return any(bool(tensor.any()) for name, tensor in weights.items() if "lora_B" in name)


def apply(model: PreTrainedModel, options: LoraOptions, *, seed: int, folder: Path) -> PeftModel:
    """Wrap the base. For PiSSA and OLoRA, ``folder`` keeps the start values, which ``save`` subtracts."""
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed
    from transformers.pytorch_utils import Conv1D

    if options.init in BASE_CHANGING_INITS and getattr(model, "hf_quantizer", None) is not None:
        raise BaseModelError(
            f"options.init = {options.init!r}: changes the base's weights, and quantised weights cannot represent the change; "
            "fix: use options.init: default, or no base_model.quantization"
        )
    if options.dora and getattr(model, "is_loaded_in_8bit", False) and model.device.type == "cpu":
        raise BaseModelError(
            "options.dora on an int8 base: has no backward pass on a CPU (bitsandbytes 0.50); "
            "fix: use base_model.quantization: nf4, or no dora"
        )
    has_conv1d = any(isinstance(module, Conv1D) for module in model.modules())
    if options.init == "olora" and has_conv1d:
        raise BaseModelError(
            f"options.init = 'olora': PEFT does not support it for the transposed layers of {model.config.model_type}; "
            "fix: use options.init: pissa or default"
        )
    set_seed(seed)
    config = LoraConfig(
        r=int(options.rank),
        lora_alpha=float(options.alpha),  # type: ignore[arg-type]
        lora_dropout=options.dropout,
        target_modules=options.target_modules,
        use_rslora=options.rslora,
        use_dora=options.dora,
        init_lora_weights=True if options.init == "default" else options.init,
        task_type=task_type(model),
        fan_in_fan_out=has_conv1d,
    )
    wrapped = get_peft_model(model, config)
    if options.init in BASE_CHANGING_INITS:
        wrapped.peft_config["default"].init_lora_weights = True
        wrapped.save_pretrained(folder / "start", safe_serialization=True)
        wrapped.peft_config["default"].init_lora_weights = options.init
    return wrapped  # type: ignore[return-value]


def optimizer(
    model: PeftModel,
    options: LoraOptions,
    *,
    optimizer_class: type,
    optimizer_kwargs: Mapping[str, Any],
    weight_decay: float,
) -> Any | None:
    """Return LoRA+'s optimizer, or None for the trainer's own."""
    if options.loraplus_ratio is None:
        return None
    from peft.optimizers import create_loraplus_optimizer

    arguments = dict(optimizer_kwargs)
    rate = arguments.pop("lr")
    return create_loraplus_optimizer(
        model,
        optimizer_class,
        lr=rate,
        loraplus_lr_ratio=options.loraplus_ratio,
        loraplus_weight_decay=weight_decay,
        **arguments,
    )


def may_save_while_training(options: LoraOptions) -> bool:
    """Return False for the initialisations that change the base: saving subtracts the start, and takes the model apart for that."""
    return options.init not in BASE_CHANGING_INITS


def save(model: PeftModel, options: LoraOptions, folder: Path, *, start: Path) -> None:
    """Write PEFT's two files so that they load on the untouched base."""
    if options.init in BASE_CHANGING_INITS:
        write_adapter(model, folder, path_initial_model_for_weight_conversion=str(start / "start"))
    else:
        write_adapter(model, folder)
    shutil.rmtree(start / "start", ignore_errors=True)


def _check_combination(options: LoraOptions) -> None:
    if options.dora and options.init in BASE_CHANGING_INITS:
        raise BaseModelError(
            f"options.dora with options.init = {options.init!r}: DoRA's magnitude cannot be expressed on the "
            "untouched base; fix: remove one of the two"
        )
