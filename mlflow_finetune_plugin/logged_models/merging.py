"""A registered adapter merged into its base: plain weights that any tool loads, proven to answer as the adapter did.

A quantised base is first brought back to full weights, those that the adapter was trained on: merged into the original
ones the adapter would meet weights that it never saw.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, GenerationConfig
from transformers.pytorch_utils import Conv1D

from mlflow_finetune_plugin.base_models.loading import device
from mlflow_finetune_plugin.errors import ConfigError, ReloadError
from mlflow_finetune_plugin.internals.transformers import attention_kernel
from mlflow_finetune_plugin.logged_models.loading import LoggedModel, differences, load_logged, on_full_weights
from mlflow_finetune_plugin.logged_models.reward_models import refuse_reward_model

# of a log-probability: merging rounds the sum of two matrices once more, in the base's precision
_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.05}
_SHARD = "4GB"  # transformers' own 50 GB is one file for most models, which some stores and hubs refuse
_INT8_TOLERANCE = 0.25  # an int8 base rounds activations too, which plain weights do not


@dataclass(frozen=True)
class MergedExport:
    """Where the merged model lies, and the largest difference to the adapter's log-probabilities, in nats per token."""

    folder: Path
    max_nats: float
    tokens: int


def export_merged(uri: str, folder: Path, base_model: str | None = None, *, trust_code: bool = False) -> MergedExport:
    """Writes safetensors, tokenizer, chat template and generation config to ``folder``, which must be new or empty.

    What is compared is the folder, loaded back. Raises ConfigError for an adaptation that cannot be merged, ReloadError
    when the merged model answers differently; nothing is left in ``folder`` then.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError([f"--merged {folder}: is not empty; fix: name a new folder"])
    logged = load_logged(uri, base_model, trust_code=trust_code)
    refuse_reward_model(logged.card, uri, "export --merged")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        dtype = str(logged.card["base_model"]["dtype"])
        merged = _merge(logged)
        merged.generation_config = GenerationConfig(
            eos_token_id=logged.card["stop_token_ids"], pad_token_id=logged.tokenizer.pad_token_id
        )
        merged.save_pretrained(part, safe_serialization=True, max_shard_size=_SHARD)
        if logged.pictures is not None:
            logged.pictures.processor.save_pretrained(part)
        logged.tokenizer.save_pretrained(part)
        difference, tokens = _difference(part, logged, dtype)
        allowed = _INT8_TOLERANCE if logged.card["base_model"]["quantization"] == "int8" else _TOLERANCE[dtype]
        if not difference <= allowed:
            raise ReloadError(
                f"the merged model differs from the adapter by {difference:.2g} nats on a token "
                f"(allowed {allowed:g}); fix: serve the adapter beside its base"
            )
        if folder.exists():
            folder.rmdir()
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return MergedExport(folder, difference, tokens)


def _merge(logged: LoggedModel) -> Any:
    """The base with the adapter's update added to its weights."""
    if not hasattr(logged.model.base_model, "merge_and_unload"):
        raise ConfigError(
            [
                f"adaptation {logged.card['adaptation']}: does not change the base's weights, so it cannot be merged; fix: --merged only for lora, qlora, ia3"
            ]
        )
    merged = on_full_weights(logged).merge_and_unload(safe_merge=True)
    return _with_transposed_layers(merged) if logged.card["base_model"]["quantization"] else merged


def _with_transposed_layers(model: Any) -> Any:
    """Return the model with the layers that its architecture stores as (in, out), as GPT-2 does.

    bitsandbytes replaces these layers by linear ones, whose weights are (out, in), and they stay linear without quantisation.
    """
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(model.config)
    for name, module in plain.named_modules():
        linear = model.get_submodule(name)
        if not isinstance(module, Conv1D) or not isinstance(linear, torch.nn.Linear):
            continue
        transposed = Conv1D(linear.out_features, linear.in_features).to(linear.weight)
        transposed.weight.data = linear.weight.data.T.contiguous()
        if linear.bias is not None:
            transposed.bias.data = linear.bias.data
        model.set_submodule(name, transposed)
    return model


def _difference(folder: Path, logged: LoggedModel, dtype: str) -> tuple[float, int]:
    """Largest difference to the reference log-probabilities of the adapter, and over how many tokens."""
    kernel = attention_kernel(logged.model.config)
    model_class = AutoModelForCausalLM if logged.pictures is None else AutoModelForImageTextToText
    model = model_class.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation=kernel)
    model = model.to(device()).eval()
    nats = differences(model, logged)
    return float(nats.max()), len(nats)
