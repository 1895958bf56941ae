"""Adapters of several methods with random weights that change what a tiny base says, saved as PEFT saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from mlflow_finetune_plugin.adaptations._bottleneck_tuner import BottleneckConfig
from mlflow_finetune_plugin.adaptations._full_tuner import FullConfig

_ATTENTION = ["q_proj", "v_proj"]
KINDS = ("lora", "dora", "ia3", "bottleneck", "full", "prefix", "prompt")


def load_model(folder: Path) -> PreTrainedModel:
    sees = hasattr(AutoConfig.from_pretrained(folder), "vision_config")
    model_class = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    return model_class.from_pretrained(folder, dtype=torch.float32).eval()


def save_adapter(kind: str, base: Path, folder: Path, *, seed: int = 0, **settings: Any) -> Path:
    """Makes an adapter and saves it; ``settings`` go to PEFT's config."""
    model = load_model(base)
    adapted = get_peft_model(model, _config(kind, model, settings))
    generator = torch.Generator().manual_seed(seed)
    for name, weights in adapted.named_parameters():
        if weights.requires_grad:
            noise = torch.randn(weights.shape, generator=generator)
            around_one = kind in ("ia3", "full") or "magnitude" in name
            weights.data = weights.data * (1 + 0.4 * noise) if around_one else 0.15 * noise
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def load_adapter(base: Path, folder: Path) -> PeftModel:
    """As anyone would load it, on a base of its own."""
    return PeftModel.from_pretrained(load_model(base), str(folder)).eval()


def _config(kind: str, model: PreTrainedModel, settings: dict[str, Any]) -> Any:
    task = {"task_type": "CAUSAL_LM"}
    if kind in ("lora", "dora"):
        return LoraConfig(**{"r": 4, "target_modules": _ATTENTION, "use_dora": kind == "dora", **task, **settings})
    if kind == "ia3":
        targets = {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
        return IA3Config(**{**targets, **task, **settings})
    if kind == "prefix":
        return PrefixTuningConfig(**{"num_virtual_tokens": 5, **task, **settings})
    if kind == "prompt":
        return PromptTuningConfig(**{"num_virtual_tokens": 5, **task, **settings})
    if kind == "full":
        targets = ["embed_tokens", "q_proj", "down_proj", "input_layernorm", "norm", "lm_head"]
        return FullConfig(**{"target_modules": targets, **task, **settings})
    sizes = {"hidden_size": model.config.hidden_size, "bottleneck_size": 16, "target_modules": ["self_attn", "mlp"]}
    return BottleneckConfig(**{**sizes, **task, **settings})
