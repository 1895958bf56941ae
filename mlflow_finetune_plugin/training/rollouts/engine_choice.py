"""Choose and describe the serving engine that samples completions, as ``mlflow-finetune serve`` would for the trained version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mlflow_finetune_plugin.base_models.facts import serving_on
from mlflow_finetune_plugin.base_models.loading import BaseModel
from mlflow_finetune_plugin.methods import Adaptation
from mlflow_finetune_plugin.serving.engines import EngineSpec
from mlflow_finetune_plugin.serving.engines.commands import Servable, rank_limit, target_modules, why_not_vllm
from mlflow_finetune_plugin.serving.engines.fleet import base_name
from mlflow_finetune_plugin.serving.engines.tied_weights import readable_by_vllm
from mlflow_finetune_plugin.serving.settings import TRANSFORMERS, VLLM, EngineLimits
from mlflow_finetune_plugin.serving.versions.adapter_config import adapter_modules, adapter_rank
from mlflow_finetune_plugin.serving.versions.fetching import EngineKey
from mlflow_finetune_plugin.serving.versions.tokenizer_store import tokenizer_digest


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter in training, for the rules by which serving chooses an engine.

    Attributes:
        card: What a version's card says about serving.
        base: What it says about the base.
        target_modules: The layers that its weights change.
        rank: Its largest rank; None if it has none.
    """

    card: Mapping[str, Any]
    base: Mapping[str, Any]
    target_modules: tuple[str, ...] = ()
    rank: int | None = None

    @classmethod
    def of(cls, base: BaseModel, adaptation: Adaptation, options: Any, folder: Path | None = None) -> SavedAdapter:
        """Return the adapter of an adaptation; without a folder, before there is one, its layers and its rank are not known."""
        family = str(json.loads((base.folder / "config.json").read_text(encoding="utf-8")).get("model_type", ""))
        serving = serving_on(family, adaptation.serving(options))
        name = adaptation.__doc__.partition("\n")[0] if adaptation.__doc__ else "adaptation"
        facts = {"quantization": base.quantization, "model_type": family}
        card = {"serving": serving, "adaptation": name, "base_model": facts}
        if folder is None:
            return cls(card, facts)
        return cls(card, facts, adapter_modules(folder), adapter_rank(folder, str(folder)))


def choose_sampling_engine(adapter: Servable) -> tuple[str, str]:
    """Return the kind of the engine that samples, and the reason: vLLM on a GPU where ``serve`` would take it."""
    if not torch.cuda.is_available():
        return (
            TRANSFORMERS,
            "on a CPU a run repeats to the last bit, and vLLM batches completions by the moment at which they arrive",
        )
    fault = why_not_vllm(adapter)
    return (VLLM, "vLLM is installed and serves this adaptation unchanged") if fault is None else (TRANSFORMERS, fault)


def engine_spec(
    kind: str,
    base: BaseModel,
    tokenizer: Any,
    adapter: Servable,
    folder: Path,
    *,
    at_once: int,
    longest: int,
    gpu_memory_utilization: float,
) -> EngineSpec:
    """Return what the engine is started with: the base, its precision and its attention kernel are those of the training.

    Args:
        kind: ``vllm`` or ``transformers``.
        base: The base in training.
        tokenizer: The tokenizer in training; its files are written.
        adapter: The first adapter; the others have its shape.
        folder: Receives the tokenizer's files.
        at_once: Completions that are decoded together.
        longest: Most tokens of a prompt and its completion.
        gpu_memory_utilization: Share of a GPU's memory for vLLM.
    """
    draft = folder / "tokenizer"
    tokenizer.save_pretrained(draft)
    digest = tokenizer_digest(draft)
    is_vllm = kind == VLLM
    weights = readable_by_vllm(base.folder, folder / "base") if is_vllm else base.folder
    return EngineSpec(
        kind=kind,
        key=EngineKey(str(base.folder), str(base.dtype).removeprefix("torch."), base.quantization, digest),
        base_name=base_name(base.name),
        base=weights,
        tokenizer=draft.rename(folder / digest),
        attn_implementation=base.attn_implementation,
        trust_remote_code=base.trust_remote_code,
        max_rank=rank_limit(adapter.rank, None) if is_vllm else 0,
        target_modules=target_modules(weights, adapter) if is_vllm else (),
        limits=EngineLimits(max_loras=1, max_cpu_loras=2, max_model_len=longest, max_num_seqs=at_once),
        # As many threads as the trainer has, so that numbers are rounded as in the last attempt of the run.
        threads=torch.get_num_threads(),
        gpu_memory_utilization=gpu_memory_utilization if is_vllm else None,
    )
