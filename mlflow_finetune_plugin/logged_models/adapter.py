"""Trained adapter -> MLflow model -> loaded back and compared. What is evaluated and registered is the loaded one."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mlflow_finetune_plugin.base_models.loading import BaseModel
from mlflow_finetune_plugin.errors import ReloadError, TrainingError
from mlflow_finetune_plugin.evaluation.generation import completion_log_probs
from mlflow_finetune_plugin.evaluation.results import EvalRow, chat_fields
from mlflow_finetune_plugin.images.model_inputs import PictureInputs
from mlflow_finetune_plugin.logged_models.precisions import ServedAs
from mlflow_finetune_plugin.logged_models.probes import probe_pictures, probe_rows
from mlflow_finetune_plugin.logged_models.prompt_shapes import render_shapes
from mlflow_finetune_plugin.logged_models.version_code import LOADER, PICTURE_CODE, SHARED_CODE
from mlflow_finetune_plugin.methods import Adaptation, load_method
from mlflow_finetune_plugin.serving.versions.content_digest import TOKENIZER_FOLDER, content_digest, file_digests
from mlflow_finetune_plugin.store.names import CARD_FILE, CONTENT_DIGEST_TAG, REFERENCE_FILE

SCORE_WEIGHT = ".score.weight"
"""How the name of a score head's tensor ends in an adapter's file."""
# log-probabilities of the same weights on the same device and code path; half precision may pick other kernels
_RELOAD_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 2e-2}


@dataclass(frozen=True)
class Reference:
    """Log-probabilities of base and adapter on known texts. They later prove that the same model answers.

    ``probes`` are measured in training's ``precision``, ``served_as`` in each precision of serving. ``renderings`` are those of
    ``render_shapes``, added when the adapter is logged. ``pictures`` are those of the probes, base64 text by name.
    """

    precision: str
    probes: list[dict[str, Any]]
    served_as: Mapping[str, ServedAs] = field(default_factory=dict)
    renderings: Sequence[Mapping[str, Any]] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        content = {
            "precision": self.precision,
            "probes": self.probes,
            "served_as": {precision: log_probs.to_dict() for precision, log_probs in self.served_as.items()},
            "renderings": list(self.renderings),
            **({"pictures": dict(self.pictures)} if self.pictures else {}),
        }
        return json.dumps(content, ensure_ascii=False)

    def log_probs(self, side: str) -> np.ndarray:
        """Return all log-probabilities of one side (``base`` or ``adapter``), (tokens,)."""
        return np.concatenate([np.asarray(probe[f"{side}_log_probs"], dtype=np.float32) for probe in self.probes])


@dataclass(frozen=True)
class LoggedAdapter:
    """The LoggedModel of an adapter. ``content_digest`` is a tag of it, and becomes one of its version."""

    model_id: str
    uri: str
    content_digest: str


def probe_log_probs(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[EvalRow]
) -> list[np.ndarray]:
    """Nats per token of the first held-out answers, one array per probe."""
    model.eval()
    chosen = probe_rows(rows)
    return completion_log_probs(
        model,
        [row.prompt_ids for row in chosen],
        [row.completion_ids for row in chosen],
        pad_token_id=int(tokenizer.pad_token_id or 0),
    )


def make_reference(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[EvalRow],
    *,
    precision: str,
    base: list[np.ndarray],
    adapter: list[np.ndarray],
    served_as: Mapping[str, ServedAs] | None = None,
) -> Reference:
    """Puts texts, token ids and both sides' log-probabilities together."""
    rows = probe_rows(rows)
    probes = [
        {
            **chat_fields(row.messages),
            "prompt": tokenizer.decode(row.prompt_ids),
            "prompt_ids": list(row.prompt_ids),
            "completion_ids": list(row.completion_ids),
            "base_log_probs": [float(x) for x in base_side],
            "adapter_log_probs": [float(x) for x in adapter_side],
        }
        for row, base_side, adapter_side in zip(rows, base, adapter, strict=False)
    ]
    return Reference(precision, probes, served_as or {}, pictures=probe_pictures(rows))


def trainable_digests(model: PeftModel) -> dict[str, str]:
    """Return the SHA-256 of each weight that training may change. Takes the memory of one weight on the CPU."""
    return {
        name: hashlib.sha256(parameter.detach().cpu().flatten().view(torch.uint8).numpy()).hexdigest()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def check_weights_changed(model: PeftModel, start: Mapping[str, str]) -> None:
    """Refuses a training that left every weight as it was. ``start``: ``trainable_digests`` before it. Raises TrainingError."""
    if trainable_digests(model) == dict(start):
        raise TrainingError(
            "training left the adapter bit for bit at its start; fix: more steps or a higher learning rate"
        )


def check_adapter_file(folder: Path, adaptation: Adaptation) -> None:
    """Refuses an adapter with a NaN, an infinity, or weights that change nothing. Raises TrainingError.

    The adaptation decides which weights change nothing (``has_effect``): B = 0 in LoRA, factors of one in IA3.
    """
    weights = load_file(folder / "adapter_model.safetensors")
    adapter = {name: tensor for name, tensor in weights.items() if not name.endswith(SCORE_WEIGHT)}
    bad = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise TrainingError(
            f"the trained adapter holds NaN or infinite weights ({len(bad)} of {len(weights)} tensors, first {bad[0]}); fix: lower training.learning_rate"
        )
    if not adaptation.has_effect(adapter):
        raise TrainingError(
            "training left the adapter at its start: every output is the base's; fix: more steps or a higher learning rate"
        )


def check_adapter_moved(reference: Reference, start: Sequence[np.ndarray] | None = None) -> None:
    """Refuses an adapter whose every probe is bit-identical to the base's, or to that of the version it started from.

    ``start``: what ``probe_log_probs`` returned of that version. Raises TrainingError.
    """
    if start is not None and np.array_equal(reference.log_probs("adapter"), np.concatenate(start)):
        raise TrainingError(
            "the trained adapter answers exactly as the version that it started from, to the last bit; fix: more steps or a higher learning rate"
        )
    if np.array_equal(reference.log_probs("adapter"), reference.log_probs("base")):
        raise TrainingError(
            "the trained adapter answers exactly as the base does, to the last bit; fix: more steps or a higher learning rate"
        )


def log_adapter(
    adapter: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    run_id: str,
    name: str,
    base: BaseModel,
    card: Mapping[str, Any],
    reference: Reference,
    folder: Path,
    step: int,
    tags: Mapping[str, str],
    pictures: PictureInputs | None = None,
) -> LoggedAdapter:
    """Logs the adapter as a pyfunc model of the run.

    ``folder`` is scratch space; ``adapter`` holds PEFT's two files; ``pictures`` is the processor of a base that sees, whose files go
    beside the tokenizer's.
    """
    import mlflow
    from mlflow.models import Model

    code = load_method("adaptation", str(card["adaptation"])).MODEL_CODE
    if pictures is not None:
        pictures.processor.save_pretrained(folder / TOKENIZER_FOLDER)
    tokenizer.save_pretrained(
        folder / TOKENIZER_FOLDER
    )  # after the processor, whose tokenizer has another chat template
    reference = replace(reference, renderings=render_shapes(tokenizer, int(card["max_length"]) // 2))
    (folder / REFERENCE_FILE).write_text(reference.to_json(), encoding="utf-8")
    files = file_digests(json.loads(reference.to_json()), folder / TOKENIZER_FOLDER)
    card = {**card, "imports": [file.stem for file in code], "files": files}
    written_card = json.dumps(card, indent=1, ensure_ascii=False)
    (folder / CARD_FILE).write_text(written_card, encoding="utf-8")
    digest = content_digest(json.loads(written_card))
    info = Model.log(
        artifact_path=None,
        name=name,
        flavor=mlflow.pyfunc,
        run_id=run_id,
        step=step,
        tags={**tags, CONTENT_DIGEST_TAG: digest},
        python_model=str(LOADER),
        code_paths=[*map(str, SHARED_CODE), *map(str, PICTURE_CODE if card.get("sees") else ()), *map(str, code)],
        artifacts={
            "adapter": str(adapter),
            "tokenizer": str(folder / TOKENIZER_FOLDER),
            "card": str(folder / CARD_FILE),
            "reference": str(folder / REFERENCE_FILE),
        },
        signature=_signature(int(card["max_new_tokens"]), gives_rewards=card.get("kind") == "reward"),
        model_config={"base_model": base.name, "verify_base": True},
        pip_requirements=_requirements(quantized=base.quantization is not None, sees=bool(card.get("sees"))),
    )
    return LoggedAdapter(info.model_id, f"models:/{info.model_id}", digest)


def reload_adapter(uri: str) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """The model as anybody would load it: through ``mlflow.pyfunc``. Raises ReloadError."""
    loaded = reload_python_model(uri)
    return loaded.model, loaded.tokenizer


def reload_python_model(uri: str) -> Any:
    """The loader's own object, with ``model``, ``tokenizer``, ``card`` and ``predict``. Raises ReloadError."""
    import mlflow

    try:
        return mlflow.pyfunc.load_model(uri).unwrap_python_model()
    except (ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise ReloadError(f"the logged model {uri} cannot be loaded back: {type(error).__name__}: {error}") from error


def check_reload(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, reference: Reference, rows: Sequence[EvalRow]
) -> float:
    """Compares the loaded model with the trained one, adapter and base; returns the largest difference in nats.

    Raises ReloadError beyond the precision's tolerance.
    """
    adapter = np.concatenate(probe_log_probs(model, tokenizer, rows))
    with model.disable_adapter():
        base = np.concatenate(probe_log_probs(model, tokenizer, rows))
    differences = np.concatenate([adapter - reference.log_probs("adapter"), base - reference.log_probs("base")])
    error = float(np.max(np.abs(differences)))
    dtype = reference.precision.split("+")[0]
    if not math.isfinite(error) or error > _RELOAD_TOLERANCE[dtype]:
        raise ReloadError(
            f"the loaded model differs from the trained one by {error:.2g} nats on a token (allowed {_RELOAD_TOLERANCE[dtype]:g} in {dtype})"
        )
    return error


def _signature(max_new_tokens: int, *, gives_rewards: bool) -> Any:
    """Params and output. No input columns: with them MLflow drops the texts of ``predict(["..."])`` as an unknown column."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    if gives_rewards:
        batch = ParamSchema([ParamSpec("batch_size", DataType.long, 16)])
        return ModelSignature(outputs=Schema([ColSpec(DataType.double)]), params=batch)
    params = ParamSchema(
        [
            ParamSpec("max_new_tokens", DataType.long, max_new_tokens),
            ParamSpec("temperature", DataType.double, 0.0),
            ParamSpec("top_p", DataType.double, 1.0),
            ParamSpec("batch_size", DataType.long, 16),
        ]
    )
    return ModelSignature(outputs=Schema([ColSpec(DataType.string)]), params=params)


def _requirements(*, quantized: bool, sees: bool) -> list[str]:
    from importlib.metadata import version

    names = ["mlflow", "torch", "transformers", "peft", "accelerate", *(["bitsandbytes"] if quantized else [])]
    names += ["pillow"] if sees else []
    return [f"{name}=={version(name).split('+')[0]}" for name in names]
