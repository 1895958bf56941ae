"""Load a base's weights and tokenizer as in training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from mlflow_finetune_plugin.base_models.files import sees
from mlflow_finetune_plugin.base_models.loading import (
    FLASH_KERNELS,
    BaseModel,
    installed_flash_kernels,
    load_base_model,
    load_picture_inputs,
)
from mlflow_finetune_plugin.errors import BaseModelError
from mlflow_finetune_plugin.images import PictureInputs
from mlflow_finetune_plugin.serving.transformers_engine.settings import EngineSettings


@dataclass(frozen=True)
class LoadedBase:
    """A loaded base. The ``stop_token_ids`` of tokenizer and generation config end every answer.

    ``pictures`` is the processor of a base that sees; None of another.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stop_token_ids: frozenset[int]
    pictures: PictureInputs | None = None


def load(settings: EngineSettings) -> LoadedBase:
    """Load a base. Raises BaseModelError for files that are missing or do not match."""
    config = json.loads((settings.model / "config.json").read_text(encoding="utf-8"))
    base = BaseModel(
        name=str(settings.model),
        folder=settings.model,
        revision=None,
        dtype=getattr(torch, settings.dtype),
        quantization=settings.quantization,
        trust_remote_code=settings.trust_remote_code,
        attn_implementation=_kernel(settings, config),
        sees=sees(config),
    )
    # That of the base, as in training. The version's copy comes from a registry, and could make a picture of any size out of each.
    pictures = load_picture_inputs(base)
    model = load_base_model(base)
    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.tokenizer, trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"{settings.tokenizer}: the tokenizer cannot be loaded: {error}") from error
    if settings.chat_template is not None:
        tokenizer.chat_template = settings.chat_template
    stops = _stop_token_ids(model.generation_config, tokenizer)
    model.generation_config = GenerationConfig()  # the base's own defaults must not replace OpenAI's
    return LoadedBase(model, tokenizer, stops, pictures)


def _kernel(settings: EngineSettings, config: dict[str, Any]) -> str:
    """Return the attention kernel of training, or the equivalent one if it is a flash kernel that is not installed."""
    kernel = settings.attn_implementation or "sdpa"
    if kernel not in FLASH_KERNELS or (torch.cuda.is_available() and kernel in installed_flash_kernels()):
        return kernel
    text = config.get("text_config") or {}
    return "eager" if config.get("attn_logit_softcapping") or text.get("attn_logit_softcapping") else "sdpa"


def _stop_token_ids(config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    configured = getattr(config, "eos_token_id", None)
    several = configured if isinstance(configured, list) else [configured]
    return frozenset(int(token) for token in (*several, tokenizer.eos_token_id) if token is not None)
