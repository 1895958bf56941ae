"""``auto`` becomes a value, once, with its reason. No torch: the numbers come from the base's shapes and the data's counts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import ceil

from mlflow_finetune_plugin.errors import BaseModelError
from mlflow_finetune_plugin.settings import TrainingSettings

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


FLASH_PACKAGES = {"flash_attention_2": "flash-attn", "flash_attention_3": "flash-attn-3"}
"""Kernel, by its name in transformers -> the distribution that brings it."""
_FLASH_CAPABILITY = {"flash_attention_2": (8, 0), "flash_attention_3": (9, 0)}
_FLASH_HEAD_SIZE = 256


@dataclass(frozen=True)
class AttentionFacts:
    """What the choice of a kernel depends on. ``capability`` is the GPU's, None without one."""

    model_type: str
    soft_caps: bool
    head_size: int
    supports_sdpa: bool
    half_precision: bool
    capability: tuple[int, int] | None
    installed: frozenset[str]
    """Of ``FLASH_PACKAGES``."""


def resolve_attention(wanted: str, facts: AttentionFacts, reasons: Reasons) -> str:
    """The attention kernel. Raises BaseModelError for one that is not installed or that this base or GPU cannot take."""
    obstacles = {kernel: _flash_obstacle(kernel, facts) for kernel in FLASH_PACKAGES}
    if wanted != "auto":
        if obstacle := obstacles.get(wanted):
            raise BaseModelError(f"base_model.attn_implementation = {wanted!r}: {obstacle}; fix: auto")
        if wanted == "sdpa" and not facts.supports_sdpa:
            raise BaseModelError(
                f"base_model.attn_implementation = 'sdpa': transformers has none for {facts.model_type}; fix: eager"
            )
        if wanted == "sdpa" and facts.soft_caps:
            raise BaseModelError(
                "base_model.attn_implementation = 'sdpa': leaves out the base's soft capping, so it would be another model; fix: eager"
            )
        return wanted
    flash = [kernel for kernel in reversed(FLASH_PACKAGES) if obstacles[kernel] is None]
    chosen, why = (
        (flash[0], "installed, and the GPU and the precision take it")
        if flash and facts.model_type in PACKS
        else ("eager", "the base caps its attention scores softly, which sdpa leaves out")
        if facts.soft_caps
        else ("eager", f"transformers has no other for {facts.model_type}")
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
    if facts.head_size > _FLASH_HEAD_SIZE:
        return f"takes heads of up to {_FLASH_HEAD_SIZE}, this base has {facts.head_size}"
    return None


def _why_no_flash(facts: AttentionFacts, obstacles: dict[str, str | None]) -> str:
    if facts.capability is None:
        return "no CUDA GPU for flash attention"
    told = "; ".join(f"{kernel} {obstacle}" for kernel, obstacle in obstacles.items() if obstacle)
    return told or f"flash attention was not tried with {facts.model_type}"


def resolve_max_length(training: TrainingSettings, base: BaseFacts, reasons: Reasons) -> int:
    """Tokens a row may have, checked against the base's positions."""
    context = base.context_length
    if training.max_length == "auto":
        chosen = min(2048, context) if context else 2048
        reasons["training.max_length"] = f"{chosen}: " + (
            "the base's whole context" if chosen == context else "2048, longer rows are rare in tuning data"
        )
        return chosen
    if context is not None and training.max_length > context:
        raise BaseModelError(
            f"training.max_length = {training.max_length}: beyond the base's {context} positions; fix: at most {context}"
        )
    return training.max_length


PACKS = frozenset(
    [
        "gemma2",
        "gemma3_text",
        "gpt2",
        "gpt_neox",
        "llama",
        "mistral",
        "mixtral",
        "opt",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_moe",
    ]
)
"""Model types whose packed rows were found to answer as the rows alone do (tests/training/test_packing.py)."""


def resolve_batching(
    training: TrainingSettings, base: BaseFacts, *, is_per_token: bool, longest_row: int, reasons: Reasons
) -> dict[str, object]:
    """``batching`` and ``max_batch_tokens``. ``is_per_token``: the adaptation changes each token's way alone, so rows can be packed."""
    batching = training.batching
    if batching == "auto":
        batching, why = (
            ("grouped", "the adaptation adds tokens of its own to each row")
            if not is_per_token
            else ("packed", "no padding, and attention ends at each row's borders")
            if base.model_type in PACKS
            else ("grouped", f"packing was not tried with {base.model_type}")
        )
        reasons["training.batching"] = f"{batching}: {why}"
    tokens = training.max_batch_tokens
    if tokens == "auto":
        tokens = int(training.per_device_train_batch_size) * longest_row
        reasons["training.max_batch_tokens"] = (
            f"{tokens}: {training.per_device_train_batch_size} rows of the longest, {longest_row} tokens"
        )
    return {"batching": batching, "max_batch_tokens": tokens}


def resolve_training(
    training: TrainingSettings,
    *,
    learning_rate: tuple[float, str],
    rows: int,
    processes: int = 1,
    on_gpu: bool,
    has_bf16: bool,
    half_precision_base: bool,
    max_length: int,
    reasons: Reasons,
) -> TrainingSettings:
    """Every ``auto`` of the training section as a number."""
    update: dict[str, object] = {"max_length": max_length}

    def choose(key: str, value: object, why: str) -> None:
        if getattr(training, key) == "auto":
            update[key] = value
            reasons[f"training.{key}"] = f"{value}: {why}"
        else:
            update[key] = getattr(training, key)

    choose("learning_rate", *learning_rate)
    shared = "" if processes == 1 else f", shared by {processes} processes"
    choose(
        "per_device_train_batch_size",
        max(1, min(16 if not on_gpu else 8, 16 // processes, ceil(rows / processes))),
        f"fits small memories; the effective batch is what matters{shared}",
    )
    at_once = int(update["per_device_train_batch_size"]) * processes  # type: ignore[call-overload]
    choose(
        "gradient_accumulation_steps",
        max(1, min(16 // at_once, ceil(rows / at_once))),
        f"effective batch of about 16, LoRA loses from large ones{shared}",
    )
    steps_per_epoch = ceil(rows / (at_once * int(update["gradient_accumulation_steps"])))  # type: ignore[call-overload]
    if training.max_steps is not None:
        choose("num_train_epochs", float(ceil(training.max_steps / steps_per_epoch)), "max_steps decides")
        steps = training.max_steps
    else:
        choose(
            "num_train_epochs",
            float(min(3, max(1, ceil(200 / steps_per_epoch)))),
            "up to 3 passes until about 200 optimiser steps",
        )
        steps = ceil(steps_per_epoch * float(update["num_train_epochs"]))  # type: ignore[arg-type]
    # the first step of a warm-up has learning rate 0, so the only step of a run cannot be one
    choose("warmup_steps", float(min(ceil(0.05 * steps), steps - 1)), f"5 % of {steps} optimiser steps")
    choose(
        "gradient_checkpointing", on_gpu, "saves memory on a GPU" if on_gpu else "a CPU has memory and needs the time"
    )
    choose(
        "bf16",
        on_gpu and has_bf16 and half_precision_base,
        _why_bf16(on_gpu and has_bf16, half_precision_base),
    )
    choose("save_steps", max(1, ceil(steps / 4)), "about 4 checkpoints a run")
    choose("logging_steps", max(1, steps // 100), "about 100 points in the charts")
    return training.model_copy(update=update)


def _why_bf16(has_bf16: bool, half_precision_base: bool) -> str:
    if not has_bf16:
        return "no GPU with bfloat16"
    return "the GPU has it" if half_precision_base else "the base is held in float32"
