"""The base's weights and tokenizer, as in training."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from mlflow_finetune_plugin.base_models.loading import (
    FLASH_KERNELS,
    BaseModel,
    installed_flash_kernels,
    load_base_model,
)
from mlflow_finetune_plugin.errors import BaseModelError
from mlflow_finetune_plugin.serving.transformers_engine.settings import EngineSettings


@dataclass(frozen=True)
class LoadedBase:
    """``stop_token_ids`` end every answer: the tokenizer's end of sequence and the generation config's."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stop_token_ids: frozenset[int]


def load(settings: EngineSettings) -> LoadedBase:
    """Raises BaseModelError for files that are not there or do not fit."""
    base = BaseModel(
        name=str(settings.model),
        folder=settings.model,
        revision=None,
        dtype=getattr(torch, settings.dtype),
        quantization=settings.quantization,
        trust_remote_code=settings.trust_remote_code,
        attn_implementation=_kernel(settings),
    )
    model = load_base_model(base)
    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.tokenizer, trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"{settings.tokenizer}: the tokenizer cannot be loaded: {error}") from error
    if settings.chat_template is not None:
        tokenizer.chat_template = settings.chat_template
    stops = _stop_token_ids(model.generation_config, tokenizer)
    model.generation_config = (
        GenerationConfig()
    )  # what the base's own asks for must not fill what a request leaves open
    return LoadedBase(model, tokenizer, stops)


def _kernel(settings: EngineSettings) -> str:
    """The kernel of training; where it is a flash kernel and not here, the one that computes the same without it."""
    kernel = settings.attn_implementation or "sdpa"
    if kernel not in FLASH_KERNELS or (torch.cuda.is_available() and kernel in installed_flash_kernels()):
        return kernel
    config = json.loads((settings.model / "config.json").read_text(encoding="utf-8"))
    return "eager" if config.get("attn_logit_softcapping") else "sdpa"


def _stop_token_ids(config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    configured = getattr(config, "eos_token_id", None)
    several = configured if isinstance(configured, list) else [configured]
    return frozenset(int(token) for token in (*several, tokenizer.eos_token_id) if token is not None)
