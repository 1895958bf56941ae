"""An adapter that changes weights in its own way as plain LoRA: what it adds to each matrix, by its best approximation of a rank.

DoRA and IA3 change whole matrices, which vLLM has no layers for. The update of each layer, merged weights minus the base's, is
cut to ``rank`` by its singular values (Eckart and Young, 1936). What is lost is measured where it matters: on the
log-probabilities of the version's own probes. PEFT's ``supports_lora_conversion`` is not asked: it says yes to what does not
convert.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D

from mlflow_finetune_plugin.errors import ConfigError, ReloadError
from mlflow_finetune_plugin.logged_models.loading import LoggedModel, differences, load_logged, on_full_weights

MAX_NATS = 0.05
"""The policy when none is given: how far a token's log-probability may be from the adapter's own."""


@dataclass(frozen=True)
class LoraExport:
    """``max_nats`` and ``mean_nats``: differences to the adapter's reference on ``tokens`` answer tokens.

    ``kept``: the share of the updates' squared size that the rank holds, over all layers.
    """

    folder: Path
    rank: int
    layers: int
    kept: float
    max_nats: float
    mean_nats: float
    tokens: int


def export_lora(
    uri: str, folder: Path, rank: int, base_model: str | None = None, *, max_nats: float = MAX_NATS
) -> LoraExport:
    """Writes PEFT's two files and ``conversion.json`` to ``folder``, which must be new or empty.

    Raises ConfigError for an adapter that changes no weights of linear layers, or their biases; ReloadError when what was
    written, loaded back, differs by more than ``max_nats``; nothing is left in ``folder`` then.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError([f"--lora {folder}: is not empty; fix: name a new folder"])
    if rank < 1:
        raise ConfigError([f"--rank {rank}: expected a number from 1 on"])
    logged = load_logged(uri, base_model)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        base, layers, held_share = _write(logged, part, rank)
        nats = differences(PeftModel.from_pretrained(base, part).eval(), logged)
        largest, mean = float(nats.max()), float(nats.mean())
        if not largest <= max_nats:
            raise ReloadError(
                f"as LoRA of rank {rank} it differs from the adapter by {largest:.2g} nats on a token (allowed {max_nats:g}; "
                f"the rank holds {held_share:.1%} of the update); fix: a higher --rank, or a higher --max-nats"
            )
        result = LoraExport(folder, rank, layers, held_share, largest, mean, len(nats))
        (part / "conversion.json").write_text(
            json.dumps(
                {**asdict(result), "folder": None, "from": uri, "adaptation": logged.card["adaptation"]}, indent=1
            ),
            encoding="utf-8",
        )
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return result


def _write(logged: LoggedModel, folder: Path, rank: int) -> tuple[Any, int, float]:
    """The base without its adapter, how many layers were converted, and how much of their updates the rank holds."""
    model = on_full_weights(logged).eval()
    tensors: dict[str, torch.Tensor] = {}
    whole = held = 0.0
    layers = 0
    for name, layer in _layers(model):
        update = _update(name, layer)  # (out, in)
        left, sizes, right = torch.linalg.svd(update.float(), full_matrices=False)
        most = min(rank, len(sizes))
        roots = sizes[:most].sqrt()
        tensors[f"base_model.model.{name}.lora_A.weight"] = _padded(roots[:, None] * right[:most], rank, 0)
        tensors[f"base_model.model.{name}.lora_B.weight"] = _padded(left[:, :most] * roots, rank, 1)
        whole += float((sizes**2).sum())
        held += float((sizes[:most] ** 2).sum())
        layers += 1
    if not layers:
        raise ConfigError(
            [
                f"adaptation {logged.card['adaptation']}: changes no weights of linear layers; fix: serve it with --engine transformers"
            ]
        )
    names = [name.removeprefix("base_model.model.").rsplit(".lora_", 1)[0] for name in tensors]
    targets = sorted({name.rsplit(".", 1)[-1] for name in names})
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, task_type="CAUSAL_LM", lora_dropout=0.0)
    config.base_model_name_or_path = str(logged.card["base_model"]["name"])
    config.fan_in_fan_out = any(isinstance(layer.get_base_layer(), Conv1D) for _, layer in _layers(model))
    config.inference_mode = True
    config.save_pretrained(str(folder))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    return model.unload(), layers, held / whole if whole else 1.0


def _layers(model: PeftModel) -> Iterator[tuple[str, Any]]:
    """Each adapted linear layer by its name in the base."""
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, BaseTunerLayer) and isinstance(module.get_base_layer(), torch.nn.Linear | Conv1D):
            yield name, module


def _update(name: str, layer: Any) -> torch.Tensor:
    """Merged weight minus the base's, (out, in)."""
    plain = layer.get_base_layer()
    before = plain.weight.detach().clone()
    bias = None if plain.bias is None else plain.bias.detach().clone()
    layer.merge(safe_merge=True)
    update = plain.weight.detach().clone() - before
    changed_bias = bias is not None and not torch.equal(plain.bias, bias)
    layer.unmerge()
    plain.weight.data.copy_(before)  # unmerging divides or subtracts: back to the bit
    if bias is not None:
        plain.bias.data.copy_(bias)
    if changed_bias:
        raise ConfigError([f"{name}: the adapter changes its bias, which LoRA cannot; fix: export --merged"])
    return update.T if isinstance(plain, Conv1D) else update


def _padded(matrix: torch.Tensor, rank: int, axis: int) -> torch.Tensor:
    """With zeros where a layer has fewer dimensions than the rank."""
    missing = rank - matrix.shape[axis]
    if not missing:
        return matrix
    shape = list(matrix.shape)
    shape[axis] = missing
    return torch.cat([matrix, matrix.new_zeros(shape)], dim=axis)
