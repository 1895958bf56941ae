"""A logged adapter, loaded as anybody would load it, with the card that says what it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from mlflow_finetune_plugin.base_models.weights_digest import folder_digest
from mlflow_finetune_plugin.data.conversations.templates import PACKAGED_TEMPLATES
from mlflow_finetune_plugin.errors import ConfigError, ReloadError, ServingError
from mlflow_finetune_plugin.evaluation.generation import completion_log_probs
from mlflow_finetune_plugin.images.model_inputs import PictureInputs
from mlflow_finetune_plugin.logged_models.probes import probe_prompts
from mlflow_finetune_plugin.logged_models.version_code import check_code, without_bytecode
from mlflow_finetune_plugin.serving.versions.adapter_config import check_adapter_config
from mlflow_finetune_plugin.serving.versions.content_digest import (
    ADAPTER_FOLDER,
    TOKENIZER_FOLDER,
    check_content,
    check_files,
    file_digests,
    report_missing_digest,
)
from mlflow_finetune_plugin.serving.versions.trials.template import try_template
from mlflow_finetune_plugin.serving.versions.trials.tokenizer import try_tokenizer
from mlflow_finetune_plugin.store.names import CARD_FILE, REFERENCE_FILE
from mlflow_finetune_plugin.store.registry import content_digest_of
from mlflow_finetune_plugin.threads import choose_threads


@dataclass(frozen=True)
class LoggedModel:
    """Base and adapter, tokenizer, and what travels in the model: ``finetune.json``, ``reference.json``, the adapter."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    card: dict[str, Any]
    reference: dict[str, Any]
    adapter: Path
    pictures: PictureInputs | None = None
    """The processor of a base that sees; None of another."""


def load_logged(uri: str, base_model: str | None = None, *, trust_code: bool = False) -> LoggedModel:
    """Load a logged adapter through ``mlflow.pyfunc``.

    Args:
        uri: The logged model.
        base_model: The folder of the base, when it has moved.
        trust_code: Run the Python code in the model also if this package does not know it.

    Raises:
        ReloadError: It cannot be loaded, would run unknown code, or is not as it was registered.
    """
    import mlflow

    settings: dict[str, bool | str] = {} if trust_code else {"verify_base": True}
    settings |= {"base_model": base_model} if base_model is not None else {}
    try:
        folder = Path(mlflow.artifacts.download_artifacts(uri))
        if not trust_code:
            check_code(folder, uri)
        card = check_content_of(folder / "artifacts", uri)
        check_tokenizer_of(folder / "artifacts", uri, Path(base_model or card["base_model"]["folder"]))
        with without_bytecode():
            loaded = mlflow.pyfunc.load_model(str(folder), model_config=settings).unwrap_python_model()
    except ReloadError:
        raise
    except (ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise ReloadError(f"{uri} cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(getattr(loaded, "card", None), dict):
        raise ReloadError(
            f"{uri} is not a model of mlflow-finetune; fix: name a version that one of its runs registered"
        )
    torch.set_num_threads(choose_threads(int(loaded.model.config.get_text_config().hidden_size)).count)
    reference = json.loads((folder / "artifacts" / REFERENCE_FILE).read_text(encoding="utf-8"))
    pictures = PictureInputs.load(folder / "artifacts" / TOKENIZER_FOLDER) if loaded.card.get("sees") else None
    adapter = folder / "artifacts" / ADAPTER_FOLDER
    return LoggedModel(loaded.model, loaded.tokenizer, loaded.card, reference, adapter, pictures)


def check_content_of(artifacts: Path, uri: str) -> dict[str, Any]:
    """Check a model's files against its content digest, and that PEFT loads its adapter in bounded time and memory.

    Args:
        artifacts: The folder ``artifacts`` of the model.
        uri: The model, for its digest in the registry and for messages.

    Returns:
        The content of its ``finetune.json``.

    Raises:
        ReloadError: A file is not as it was registered, or could block or fill this process.
    """
    from mlflow import MlflowClient

    try:
        check_files(artifacts, uri)
        tag = content_digest_of(MlflowClient(), uri) if uri.startswith("models:/") else None
        card, reference = (json.loads((artifacts / file).read_text("utf-8")) for file in (CARD_FILE, REFERENCE_FILE))
        check_content(file_digests(reference, artifacts / TOKENIZER_FOLDER), card, tag, uri)
        if folder_digest(artifacts / ADAPTER_FOLDER) != card["adapter_digest"]:
            raise ServingError(
                f"{uri}: {ADAPTER_FOLDER} is not the one that was registered; fix: restore it, or register it again"
            )
        check_adapter_config(artifacts / ADAPTER_FOLDER, uri)
    except ServingError as error:
        raise ReloadError(f"{error}; it was not loaded") from error
    except ConfigError as error:
        raise ReloadError(f"{uri}: its content digest cannot be read: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ReloadError(f"{uri} is not a model of mlflow-finetune ({type(error).__name__}: {error})"[:400]) from error
    if tag is None and uri.startswith("models:/"):
        report_missing_digest(uri)
    return dict(card)


def check_tokenizer_of(artifacts: Path, uri: str, base: Path) -> None:
    """Check that a model's tokenizer and chat template work in bounded time and memory, unless they are those of its base.

    Args:
        artifacts: The folder ``artifacts`` of the model.
        uri: The model, for messages.
        base: The folder of its base.

    Raises:
        ReloadError: It does not.
    """
    try:
        try_tokenizer(artifacts / TOKENIZER_FOLDER, base, uri)
        try_template(artifacts / TOKENIZER_FOLDER, base, PACKAGED_TEMPLATES, uri)
    except ServingError as error:
        raise ReloadError(f"{error}; it was not loaded") from error


def on_full_weights(logged: LoggedModel) -> PeftModel:
    """The adapter on weights that are not quantised: those that a quantised base stands for, which training saw."""
    if not logged.card["base_model"]["quantization"]:
        return logged.model
    base = logged.model.unload().dequantize().to(getattr(torch, logged.card["base_model"]["dtype"]))
    return PeftModel.from_pretrained(base, logged.adapter)


def differences(model: Any, logged: LoggedModel) -> np.ndarray:
    """Return how far ``model`` is from the trained adapter on its probes: absolute nats, one per answer token."""
    probes = logged.reference["probes"]
    log_probs = completion_log_probs(
        model,
        probe_prompts(logged.reference, logged.pictures),
        [probe["completion_ids"] for probe in probes],
        pad_token_id=int(logged.tokenizer.pad_token_id or 0),
    )
    recorded = np.concatenate([np.asarray(probe["adapter_log_probs"], dtype=np.float32) for probe in probes])
    nats: np.ndarray = np.abs(np.concatenate(log_probs) - recorded)
    return nats
