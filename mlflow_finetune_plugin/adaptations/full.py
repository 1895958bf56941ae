"""Full fine-tuning: train the base's own weights, all of them or a part, on PEFT.

Each trained module gets a copy of its weights and computes with it (``_full_tuner``). The base stays in memory beside the
copies, so that base and trained model are compared in one process. The copies are trained in float32 and saved in the
precision of the base.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from mlflow_finetune_plugin.adaptations import task_type
from mlflow_finetune_plugin.adaptations._adapter_files import write_adapter
from mlflow_finetune_plugin.adaptations._blocks import check_names, decoder_blocks
from mlflow_finetune_plugin.base_models.facts import BaseFacts, Reasons
from mlflow_finetune_plugin.errors import BaseModelError
from mlflow_finetune_plugin.methods import Serving
from mlflow_finetune_plugin.section import Auto, Section

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel

MODEL_CODE = (Path(__file__).parent / "_full_tuner.py",)
"""Copied into every logged model and imported before its trained weights are loaded."""

QUANTIZATIONS = ()
"""Quantised weights are integers, which have no gradients."""

_FIX = "name the modules in options.modules, or use -P adaptation=lora"


class FullOptions(Section):
    """Options of full fine-tuning."""

    layers: Annotated[str, Field(pattern=r"all|none|(first|last) [1-9][0-9]*")] = Field(
        "all", description="Decoder layers that are trained: all, none, first N or last N."
    )
    embeddings: bool | Auto = Field(
        "auto", description="Train embeddings and output head; auto: with layers: all and weights: all."
    )
    weights: Literal["all", "linear", "norms"] = Field(
        "all", description="Which weights of these modules are trained: all, those of linear layers, or those of norms."
    )
    modules: list[str] | Auto = Field(
        "auto",
        description="Endings of the names of modules that are trained with all inside them; auto: by layers and embeddings.",
    )


Options = FullOptions


def resolve(options: FullOptions, base: BaseFacts, reasons: Reasons) -> FullOptions:
    """Return the options without ``auto``. Raises BaseModelError for options that this base cannot take."""
    if options.modules != "auto":
        return _with_modules(options, options.modules, base, reasons)
    embeddings = options.embeddings
    if embeddings == "auto":
        embeddings = options.layers == "all" and options.weights == "all"
        reasons["options.embeddings"] = (
            f"{str(embeddings).lower()}: layers: {options.layers}, weights: {options.weights}"
        )
    selected = _selected(options.layers, embeddings, base)
    reasons["options.modules"] = f"{', '.join(selected)}: layers: {options.layers}"
    return options.model_copy(update={"embeddings": embeddings, "modules": selected})


def learning_rate(base: BaseFacts) -> tuple[float, str]:
    """Return the ``auto`` learning rate and its reason. It is far below LoRA's, because every weight moves."""
    if base.hidden_size < 512:
        return 1e-3, "measured on tiny models (benchmarks/results/adaptation_rates.md)"
    return 1e-5, "PEFT's for full fine-tuning of Llama 3.2 3B (method_comparison)"


def serving(options: FullOptions) -> Serving:
    """Return ``merge``: vLLM holds no second copy of weights, and serves the merged model as a base."""
    return "merge"


def has_effect(weights: Mapping[str, Any]) -> bool:
    """Return True: the file does not show the base's weights. That weights and answers changed is checked on the model."""
    return True


def apply(model: PreTrainedModel, options: FullOptions, *, seed: int, folder: Path) -> PeftModel:
    """Wrap the base. ``seed`` is unused: every copy starts at the base's weights, so the answers are the base's."""
    from peft import get_peft_model

    from mlflow_finetune_plugin.internals.peft import check_tuners

    check_tuners()  # before the module of the tuner is loaded, whose classes build on PEFT's
    from mlflow_finetune_plugin.adaptations._full_tuner import FullConfig

    targets = list(_trained_modules(model, options))
    if not targets:
        raise BaseModelError(
            f"options.weights = {options.weights!r} with options.modules = {options.modules!r}: no module of this base has "
            "such weights; fix: choose other weights or modules"
        )
    config = FullConfig(target_modules=targets, task_type=task_type(model))
    return get_peft_model(model, config)  # type: ignore[no-any-return]


def save(model: PeftModel, options: FullOptions, folder: Path, *, start: Path) -> None:
    """Write PEFT's two files, the trained weights in the precision of the base."""
    weights = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    for layer_name, layer in model.named_modules():
        # The class may be that of a logged model's copy of the tuner, which registers itself with PEFT when it is loaded.
        if hasattr(type(layer), "saved_copies"):
            weights |= {f"{layer_name}.{name}": weight for name, weight in layer.saved_copies(model.active_adapter)}
    write_adapter(model, folder, state_dict=weights, save_embedding_layers=False)


def _with_modules(options: FullOptions, modules: list[str], base: BaseFacts, reasons: Reasons) -> FullOptions:
    """Return the options with the user's modules, or those of a version that is continued."""
    check_names(base, "modules", modules, [*base.linear_shapes, *base.other_modules])
    modules = sorted(modules)
    if options.embeddings == "auto":
        reasons["options.embeddings"] = "false: options.modules names what is trained"
    embeddings = options.embeddings is True
    if (options.layers != "all" or embeddings) and modules != _selected(options.layers, embeddings, base):
        raise BaseModelError(
            "options.modules with options.layers or options.embeddings: both choose what is trained; fix: remove one of them"
        )
    return options.model_copy(update={"embeddings": embeddings, "modules": modules})


def _selected(layers: str, embeddings: bool, base: BaseFacts) -> list[str]:
    """Return the modules that ``layers`` and ``embeddings`` choose, sorted."""
    names = [*base.linear_shapes, *base.other_modules]
    if layers == "all" and embeddings:
        return sorted(name for name in names if "." not in name)
    blocks = [block.name for block in decoder_blocks(base, fix=_FIX)]
    stacks = {name.rpartition(".")[0] for name in blocks}
    outside = [name for name in _without_children(names) if not any(name.startswith(f"{stack}.") for stack in stacks)]
    ends = [name for name in outside if _is_embedding(name) or name == base.head]
    chosen = ends if embeddings else []
    if layers == "all" or layers.startswith("last"):  # the norm behind the last layer
        chosen = [*chosen, *(name for name in outside if name not in ends)]
    return sorted({*chosen, *_layers(layers, blocks)})


def _layers(layers: str, blocks: list[str]) -> list[str]:
    if layers in ("all", "none"):
        return blocks if layers == "all" else []
    side, count = layers.split()
    if int(count) > len(blocks):
        raise BaseModelError(
            f"options.layers = {layers!r}: this base has {len(blocks)} layers; fix: use a number up to {len(blocks)}, or all"
        )
    return blocks[: int(count)] if side == "first" else blocks[-int(count) :]


def _without_children(names: list[str]) -> list[str]:
    parents = {name.rpartition(".")[0] for name in names}
    return [name for name in names if name not in parents]


def _is_embedding(name: str) -> bool:
    last = name.rsplit(".", 1)[-1].lower()
    return "embed" in last or last in ("wte", "wpe")


def _trained_modules(model: PreTrainedModel, options: FullOptions) -> Iterator[str]:
    """Yield the full names of the modules that hold weights of the chosen kind."""
    modules = set(options.modules)
    for name, module in model.named_modules():
        parts = name.split(".")
        endings = {".".join(parts[i:j]) for j in range(1, len(parts) + 1) for i in range(j)}
        if (
            endings & modules
            and any(True for _ in module.parameters(recurse=False))
            and _has_kind(module, options.weights)
        ):
            yield name


def _has_kind(module: nn.Module, weights: str) -> bool:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if weights == "linear":
        return isinstance(module, nn.Linear | Conv1D)
    return weights == "all" or "norm" in type(module).__name__.lower()
