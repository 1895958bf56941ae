"""What is known of a base model from its config files, before its weights are read."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mlflow_finetune_plugin.errors import BaseModelError

Reasons = dict[str, str]
"""Dotted key -> "value: why"."""


@dataclass(frozen=True)
class BaseFacts:
    """What choices depend on: the base's family, sizes and linear layers (name -> weight shape, output head left out).

    ``other_modules`` are the names of all that is no such layer: the head, embeddings, norms, containers.
    """

    model_type: str
    hidden_size: int
    context_length: int | None
    parameters: int
    linear_shapes: dict[str, tuple[int, ...]] = field(repr=False)
    other_modules: tuple[str, ...] = field(default=(), repr=False)
    head: str | None = None
    has_stacked_experts: bool = False
    has_transposed_layers: bool = False  # shapes are (in, out) as in GPT-2, else (out, in)

    def is_target(self, name: str, targets: str | list[str]) -> bool:
        """PEFT's matching rule: all-linear, a full-match regular expression, or name endings."""
        if targets == "all-linear":
            return True
        if isinstance(targets, str):
            try:
                return re.fullmatch(targets, name) is not None
            except re.error as error:
                raise BaseModelError(
                    f"options.target_modules = {targets!r}: not a regular expression: {error}"
                ) from error
        return any(name == target or name.endswith(f".{target}") for target in targets)


# model types whose class in vLLM 0.32 is no SupportsLoRA (vllm/model_executor/models): it would refuse every adapter
_FAMILIES_WITHOUT_VLLM_LORA = frozenset(
    ("bloom", "dbrx", "falcon", "falcon_mamba", "gpt2", "gptj", "mamba", "mamba2", "orion", "stablelm", "zamba2")
)


def takes_adapters(model_type: str) -> bool:
    """Whether vLLM serves adapters, plain LoRA at least, on bases of this family."""
    return model_type not in _FAMILIES_WITHOUT_VLLM_LORA
