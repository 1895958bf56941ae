"""The facts about a base model that its config files give, before any weight is read."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from mlflow_finetune_plugin.base_models.name_patterns import pattern_fault
from mlflow_finetune_plugin.errors import BaseModelError

Reasons = dict[str, str]
"""Dotted key -> "value: why"."""


@dataclass(frozen=True)
class BaseFacts:
    """Family, sizes and layers of a base.

    ``linear_shapes`` maps the name of each linear layer, except the output head, to the shape of its weight.
    ``other_modules`` are the names of all other modules: head, embeddings, norms, containers. ``head`` is the name of the
    output head. ``context_length`` is in tokens, None where the config states none.
    """

    model_type: str
    hidden_size: int
    context_length: int | None
    parameters: int
    linear_shapes: dict[str, tuple[int, ...]] = field(repr=False)
    other_modules: tuple[str, ...] = field(default=(), repr=False)
    head: str | None = None
    has_stacked_experts: bool = False
    vocabulary_size: int = 0  # rows of the input embedding
    has_transposed_layers: bool = False  # shapes are (in, out) as in GPT-2, else (out, in)
    sees: bool = False  # reads pictures beside text

    def is_target(self, name: str, targets: str | list[str]) -> bool:
        """Return whether PEFT would adapt this module: ``all-linear``, a full-match regular expression, or name endings."""
        if targets == "all-linear":
            return True
        if isinstance(targets, str):
            fault = pattern_fault(targets)
            if fault is not None:
                raise BaseModelError(f"options.target_modules = {targets!r}: {fault}; fix: list name endings instead")
            return re.fullmatch(targets, name) is not None
        return any(name == target or name.endswith(f".{target}") for target in targets)


Part = Literal["language", "projector", "vision"]
"""A part of a base that sees: the language model, what turns features of pictures into its inputs, and the vision tower."""

_VISION = frozenset(
    ("vision_tower", "vision_model", "visual", "vision_encoder", "image_encoder", "vision_embed_tokens")
)
_PROJECTORS = frozenset(
    (
        *("multi_modal_projector", "mm_projector", "connector", "projector", "modality_projection", "embed_vision"),
        *("merger", "deepstack_merger_list", "image_projection", "aligner"),
    )
)


def part_of(name: str) -> Part:
    """Return the part of a base that sees which a module belongs to, by the names that Transformers gives modules."""
    segments = set(name.split("."))
    if segments & _PROJECTORS:
        return "projector"
    return "vision" if segments & _VISION else "language"


# Model types whose class in vLLM 0.32 does not support LoRA (vllm/model_executor/models).
_FAMILIES_WITHOUT_VLLM_LORA = frozenset(
    ("bloom", "dbrx", "falcon", "falcon_mamba", "gpt2", "gptj", "mamba", "mamba2", "orion", "stablelm", "zamba2")
)


# Mixtures of experts whose model type does not contain "moe".
_OTHER_EXPERTS = frozenset(
    (
        *("dbrx", "deepseek_v2", "deepseek_v3", "deepseek_v4", "dots1", "flex_olmo", "gpt_oss", "jamba", "llama4"),
        *("llama4_text", "longcat_flash", "minimax", "mixtral", "qwen3_next"),
    )
)


def has_experts(model_type: str) -> bool:
    """Return whether bases of this family are mixtures of experts."""
    return "moe" in model_type or model_type in _OTHER_EXPERTS


def takes_adapters(model_type: str) -> bool:
    """Return whether vLLM serves LoRA adapters on bases of this family."""
    return model_type not in _FAMILIES_WITHOUT_VLLM_LORA


def serving_on(model_type: str, serving: str) -> str:
    """Return how an adapter can be served on a base of this family, given how its adaptation can be (``methods.Serving``)."""
    return serving if takes_adapters(model_type) else "transformers"
