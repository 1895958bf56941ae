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

from mlflow_finetune_plugin.errors import ReloadError
from mlflow_finetune_plugin.evaluation.generation import completion_log_probs
from mlflow_finetune_plugin.logged_models.version_code import check_code, without_bytecode
from mlflow_finetune_plugin.store.names import REFERENCE_FILE
from mlflow_finetune_plugin.threads import choose_threads


@dataclass(frozen=True)
class LoggedModel:
    """Base and adapter, tokenizer, and what travels in the model: ``finetune.json``, ``reference.json``, the adapter."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    card: dict[str, Any]
    reference: dict[str, Any]
    adapter: Path


def load_logged(uri: str, base_model: str | None = None, *, trust_code: bool = False) -> LoggedModel:
    """Load a logged adapter through ``mlflow.pyfunc``.

    Args:
        uri: The logged model.
        base_model: The folder of the base, when it has moved.
        trust_code: Run the Python code in the model also if this package does not know it.

    Raises:
        ReloadError: It cannot be loaded, or would run unknown code.
    """
    import mlflow

    settings: dict[str, bool | str] = {} if trust_code else {"verify_base": True}
    settings |= {"base_model": base_model} if base_model is not None else {}
    try:
        folder = Path(mlflow.artifacts.download_artifacts(uri))
        if not trust_code:
            check_code(folder, uri)
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
    return LoggedModel(loaded.model, loaded.tokenizer, loaded.card, reference, folder / "artifacts" / "adapter")


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
        [probe["prompt_ids"] for probe in probes],
        [probe["completion_ids"] for probe in probes],
        pad_token_id=int(logged.tokenizer.pad_token_id or 0),
    )
    recorded = np.concatenate([np.asarray(probe["adapter_log_probs"], dtype=np.float32) for probe in probes])
    nats: np.ndarray = np.abs(np.concatenate(log_probs) - recorded)
    return nats
