"""Choose the attention kernel for a base on this machine, with the reason."""

from __future__ import annotations

from dataclasses import dataclass

from mlflow_finetune_plugin.base_models.facts import Reasons
from mlflow_finetune_plugin.errors import BaseModelError

FLASH_PACKAGES = {"flash_attention_2": "flash-attn", "flash_attention_3": "flash-attn-3"}
"""The kernel's name in transformers -> the distribution that provides it."""

_FLASH_CAPABILITY = {"flash_attention_2": (8, 0), "flash_attention_3": (9, 0)}

_FLASH_HEAD_SIZE = 256

_HAS_SINKS = frozenset({"gpt_oss"})
"""Model types with attention sinks, which the packages of ``FLASH_PACKAGES`` do not compute."""


@dataclass(frozen=True)
class AttentionFacts:
    """The facts that decide the kernel. ``capability`` is the GPU's compute capability, None without a GPU."""

    model_type: str
    soft_caps: bool
    head_size: int
    supports_sdpa: bool
    half_precision: bool
    capability: tuple[int, int] | None
    installed: frozenset[str]
    """The kernels of ``FLASH_PACKAGES`` that are installed."""


def resolve_attention(setting: str, facts: AttentionFacts, reasons: Reasons) -> str:
    """Return the attention kernel's name in transformers.

    Args:
        setting: ``base_model.attn_implementation``.
        facts: base, GPU and installed packages.
        reasons: receives the reason for an ``auto`` choice.

    Raises:
        BaseModelError: the kernel is not installed, or this base or GPU does not support it.
    """
    obstacles = {kernel: _flash_obstacle(kernel, facts) for kernel in FLASH_PACKAGES}
    if setting != "auto":
        if obstacle := obstacles.get(setting):
            raise BaseModelError(f"base_model.attn_implementation = {setting!r}: {obstacle}; fix: use auto")
        if setting == "sdpa" and facts.soft_caps:
            raise BaseModelError(
                "base_model.attn_implementation = 'sdpa': ignores the base's soft capping, which would change the model; fix: use eager"
            )
        if setting == "sdpa" and not facts.supports_sdpa:
            raise BaseModelError(
                f"base_model.attn_implementation = 'sdpa': transformers has no sdpa for {facts.model_type}; fix: use eager"
            )
        return setting
    flash = [kernel for kernel in reversed(FLASH_PACKAGES) if obstacles[kernel] is None]
    chosen, why = (
        (flash[0], "installed, and supported by GPU and precision")
        if flash and facts.model_type in PACKS
        else ("eager", "the base uses soft capping of attention scores, which sdpa ignores")
        if facts.soft_caps
        else ("eager", f"transformers has no other kernel for {facts.model_type}")
        if not facts.supports_sdpa
        else ("sdpa", _why_no_flash(facts, obstacles))
    )
    reasons["base_model.attn_implementation"] = f"{chosen}: {why}"
    return chosen


def _flash_obstacle(kernel: str, facts: AttentionFacts) -> str | None:
    if facts.capability is None:
        return "needs a CUDA GPU"
    if kernel not in facts.installed:
        return f"{FLASH_PACKAGES[kernel]} is not installed"
    if facts.capability < _FLASH_CAPABILITY[kernel]:
        return f"needs a GPU of compute capability {'.'.join(map(str, _FLASH_CAPABILITY[kernel]))}"
    if not facts.half_precision:
        return "needs base_model.dtype bfloat16 or float16"
    if facts.model_type in _HAS_SINKS:
        return f"does not compute the attention sinks of {facts.model_type}"
    if facts.head_size > _FLASH_HEAD_SIZE:
        return f"supports head sizes up to {_FLASH_HEAD_SIZE}, this base has {facts.head_size}"
    return None


def _why_no_flash(facts: AttentionFacts, obstacles: dict[str, str | None]) -> str:
    if facts.capability is None:
        return "no CUDA GPU for flash attention"
    obstacle_list = "; ".join(f"{kernel} {obstacle}" for kernel, obstacle in obstacles.items() if obstacle)
    return obstacle_list or f"flash attention is not tested with {facts.model_type}"


PACKS = frozenset(
    [
        "gemma2",
        "gemma3_text",
        "glm4",
        "glm4_moe",
        "gpt2",
        "gpt_neox",
        "gpt_oss",
        "granite",
        "llama",
        "mistral",
        "mixtral",
        "olmo2",
        "opt",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "smollm3",
    ]
)
"""Model types for which packed rows give the same results as single rows (tests/training/test_packing.py)."""
