"""Find, check, describe and load the base model. Weights are read last, after everything else is checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.pytorch_utils import Conv1D
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from mlflow_finetune_plugin.base_models.attention import AttentionFacts, resolve_attention
from mlflow_finetune_plugin.base_models.facts import BaseFacts, Reasons
from mlflow_finetune_plugin.base_models.files import check_base_files, context_length, local_folder, sees
from mlflow_finetune_plugin.base_models.settings import BaseModelSettings
from mlflow_finetune_plugin.base_models.weights_digest import score_model_arguments
from mlflow_finetune_plugin.errors import BaseModelError, one_line
from mlflow_finetune_plugin.images import PictureInputs
from mlflow_finetune_plugin.internals.transformers import score_head, supports_sdpa

_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py", "tokenizer*"]
FLASH_KERNELS = {"flash_attention_2": is_flash_attn_2_available, "flash_attention_3": is_flash_attn_3_available}


_NO_SCORE_HEAD = "this architecture cannot become a reward model, as transformers has no score head for it"


@dataclass(frozen=True)
class BaseModel:
    """A base model with its files on this disk. ``revision`` is the commit of a hub model."""

    name: str
    folder: Path
    revision: str | None
    dtype: torch.dtype
    quantization: str | None
    trust_remote_code: bool
    attn_implementation: str = "sdpa"
    sees: bool = False
    """Whether the model reads pictures beside text."""

    @property
    def precision(self) -> str:
        """The precision of the weights in training, for example ``bfloat16`` or ``bfloat16+nf4``."""
        name = str(self.dtype).removeprefix("torch.")
        return f"{name}+{self.quantization}" if self.quantization else name


def find_base_model(settings: BaseModelSettings, reasons: Reasons) -> BaseModel:
    """Find the files, download a hub model, check them and decide the precision. Raises BaseModelError."""
    folder = local_folder(settings.name)
    revision = None
    if folder is None:
        folder = _download(settings)
        revision = folder.name
    config = check_base_files(folder, trust_remote_code=settings.trust_remote_code)
    base = BaseModel(
        name=settings.name,
        folder=folder,
        revision=revision,
        dtype=_dtype(settings.dtype, config, reasons),
        quantization=settings.quantization,
        trust_remote_code=settings.trust_remote_code,
        sees=sees(config),
    )
    kernel = resolve_attention(settings.attn_implementation, attention_facts(base), reasons)
    return replace(base, attn_implementation=kernel)


def attention_facts(base: BaseModel) -> AttentionFacts:
    """Return the facts that decide the attention kernel: base, GPU and installed packages."""
    config = _config(base)
    text = config.get_text_config()
    classes = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if base.sees else MODEL_FOR_CAUSAL_LM_MAPPING
    model_class = classes.get(type(config), None)  # None for code that comes with the model
    heads = getattr(text, "num_attention_heads", None) or 1
    return AttentionFacts(
        model_type=str(config.model_type),
        soft_caps=getattr(text, "attn_logit_softcapping", None) is not None,
        head_size=getattr(text, "head_dim", None) or text.hidden_size // heads,
        supports_sdpa=model_class is None or supports_sdpa(model_class),
        half_precision=base.dtype in (torch.bfloat16, torch.float16),
        capability=torch.cuda.get_device_capability() if torch.cuda.is_available() else None,
        installed=installed_flash_kernels(),
    )


def installed_flash_kernels() -> frozenset[str]:
    """Return the names of the installed flash kernels, whether or not the GPU supports them."""
    return frozenset(kernel for kernel, is_here in FLASH_KERNELS.items() if is_here())


def device() -> torch.device:
    """Return CUDA where there is a GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_picture_inputs(base: BaseModel) -> PictureInputs | None:
    """Return the processor of a base that sees; None of another. Raises BaseModelError where it cannot be loaded."""
    return PictureInputs.load(base.folder, trust_remote_code=base.trust_remote_code) if base.sees else None


def load_tokenizer(base: BaseModel) -> PreTrainedTokenizerBase:
    """Return the base's tokenizer. A missing padding token becomes the end-of-sequence token, as padding carries no loss."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(base.folder, trust_remote_code=base.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"{base.folder}: the tokenizer cannot be loaded: {one_line(error)}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer  # type: ignore[no-any-return]


def describe(base: BaseModel) -> BaseFacts:
    """Return sizes and layers, from the architecture on the meta device: reads no weight and uses no memory."""
    model = empty_model(base)
    config = model.config
    head = model.get_output_embeddings()
    modules = {name: module for name, module in model.named_modules() if name}
    shapes = {
        name: tuple(module.weight.shape)
        for name, module in modules.items()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head
    }
    text = config.get_text_config()
    return BaseFacts(
        model_type=str(config.model_type),
        hidden_size=int(text.hidden_size),
        context_length=context_length(config.to_dict()),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        linear_shapes=shapes,
        other_modules=tuple(name for name in modules if name not in shapes),
        vocabulary_size=int(model.get_input_embeddings().weight.shape[0]),
        head=next((name for name, module in modules.items() if module is head), None),
        has_transposed_layers=any(isinstance(module, Conv1D) for module in modules.values()),
        sees=base.sees,
        has_stacked_experts=any(
            parameter.ndim == 3 and name.split(".")[-2] == "experts" for name, parameter in model.named_parameters()
        ),
    )


def empty_model(base: BaseModel) -> PreTrainedModel:
    """Return the architecture on the meta device, in the base's precision but not quantised. Reads no weight."""
    config = _config(base)
    try:
        with torch.device("meta"):
            return _model_class(base).from_config(  # type: ignore[no-any-return]
                config, trust_remote_code=base.trust_remote_code, dtype=base.dtype
            )
    except ValueError as error:
        raise BaseModelError(
            f"{base.folder}: transformers has no causal language model for it: {one_line(error)}"
        ) from error


def empty_score_model(base: BaseModel) -> PreTrainedModel:
    """Return the architecture with a score head on the meta device, in the base's precision but not quantised. Reads no weight.

    Raises:
        BaseModelError: transformers has no such model of this architecture, or one with another head.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(
                _score_config(base), trust_remote_code=base.trust_remote_code, dtype=base.dtype
            )
    except ValueError as error:
        raise BaseModelError(f"{base.folder}: {_NO_SCORE_HEAD}: {one_line(error)}") from error
    if not isinstance(score_head(model), torch.nn.Linear):
        raise BaseModelError(f"{base.folder}: {_NO_SCORE_HEAD}: {type(model).__name__} has no layer 'score'")
    return model  # type: ignore[no-any-return]


def load_model(base: BaseModel, kind: Literal["causal", "score"], *, seed: int) -> PreTrainedModel:
    """Return the base with the head that an objective trains; ``seed`` decides the start of a score head."""
    return load_score_model(base, seed=seed) if kind == "score" else load_base_model(base)


def load_base_model(base: BaseModel) -> PreTrainedModel:
    """Return the model on the training device in the chosen precision. Raises BaseModelError for weights of another shape."""
    model, missing = _load(base, _model_class(base))
    _check_complete(base, missing)
    return model


def load_score_model(base: BaseModel, *, seed: int) -> PreTrainedModel:
    """Return the base with a new score head instead of its output layer, on the training device.

    The head is float32, because bfloat16 would round a reward to three digits.

    Args:
        base: The base.
        seed: Decides the head's start values, as transformers draws them: normal, with the deviation ``initializer_range``.

    Raises:
        BaseModelError: The weights have another shape, or some are missing.
    """
    more = {"config": _score_config(base), **score_model_arguments(base.folder)}
    model, missing = _load(base, AutoModelForSequenceClassification, **more)
    _check_complete(base, [name for name in missing if name != "score.weight"])
    head = score_head(model)
    assert head is not None
    deviation = float(getattr(model.config.get_text_config(), "initializer_range", None) or 0.02)
    drawn = torch.empty(head.weight.shape).normal_(std=deviation, generator=torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
    head.weight = torch.nn.Parameter(drawn.to(head.weight.device))  # type: ignore[arg-type]
    return model


def _model_class(base: BaseModel) -> Any:
    return AutoModelForImageTextToText if base.sees else AutoModelForCausalLM


def _score_config(base: BaseModel) -> Any:
    config = _config(base)
    config.num_labels = 1
    return config


def _load(base: BaseModel, model_class: Any, **more: Any) -> tuple[PreTrainedModel, list[str]]:
    """Return the model, and the names of the weights that the files lack."""
    arguments: dict[str, Any] = {
        "dtype": base.dtype,
        "trust_remote_code": base.trust_remote_code,
        "use_safetensors": True,
        "attn_implementation": base.attn_implementation,
        **more,
    }
    if base.quantization is not None:
        arguments["quantization_config"] = quantization_config(base)
        arguments["device_map"] = {"": device()}
    try:
        model, info = model_class.from_pretrained(base.folder, output_loading_info=True, **arguments)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise BaseModelError(f"{base.folder}: the weights cannot be loaded: {one_line(error)}") from error
    if base.quantization is None:
        model = model.to(device())
    else:
        keep_4bit_layout(model)
    return model, sorted(info["missing_keys"])


def _check_complete(base: BaseModel, missing: list[str]) -> None:
    if missing:
        raise BaseModelError(
            f"{base.folder}: {len(missing)} weights are missing from the files ({', '.join(missing[:3])}); fix: download the model again"
        )


def keep_4bit_layout(model: PreTrainedModel) -> None:
    """Stop bitsandbytes from repacking 4-bit layers at their first inference on a CPU with AVX512-BF16.

    The packed layers have no backward pass, so training after any evaluation would silently lose its gradients; they
    round the scales to bfloat16, and they reject widths that are not a multiple of 32 (bitsandbytes 0.50, nn/modules.py).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def quantization_config(base: BaseModel) -> Any:
    """Return the bitsandbytes config: nf4 with double quantisation as in QLoRA (arXiv 2305.14314), or int8."""
    from transformers import BitsAndBytesConfig

    if base.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=base.dtype
    )


def _config(base: BaseModel) -> Any:
    try:
        return AutoConfig.from_pretrained(base.folder, trust_remote_code=base.trust_remote_code)
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{base.folder}: config.json cannot be used: {one_line(error)}") from error


def _dtype(setting: str, config: dict[str, Any], reasons: Reasons) -> torch.dtype:
    if setting != "auto":
        return getattr(torch, setting)  # type: ignore[no-any-return]
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False) and stored != "float32":
        reasons["base_model.dtype"] = "bfloat16: the GPU supports it and the base is stored in half precision"
        return torch.bfloat16
    reasons["base_model.dtype"] = "float32: " + (
        "the base is stored in it" if stored == "float32" else "no GPU with bfloat16"
    )
    return torch.float32


def _download(settings: BaseModelSettings) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(settings.name, revision=settings.revision, allow_patterns=_HUB_FILES))
    except RevisionNotFoundError as error:
        raise BaseModelError(
            f"base_model.revision = {settings.revision!r}: no such revision of {settings.name}; fix: name a branch, tag or commit"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise BaseModelError(
            f"base_model.name = {settings.name!r}: no such folder here and no such model on the hub (or no access to it); fix: check the name"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise BaseModelError(
            f"base_model.name = {settings.name!r}: no such folder here, not in the local hub cache, and the hub cannot be reached; "
            f"fix: give a local folder, or download it where there is a network ({one_line(error)[:200]})"
        ) from error
