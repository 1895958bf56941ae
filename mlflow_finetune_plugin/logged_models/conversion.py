"""Convert an adapter that changes weights in another way (DoRA, IA3, full fine-tuning) to plain LoRA of a given rank.

vLLM has no layers for such adapters. The update of each layer (merged weights minus the base's) is cut to ``rank`` by its
singular values, which is the best approximation of that rank (Eckart and Young, 1936). The loss is measured on the
log-probabilities of the version's own probes. PEFT's ``supports_lora_conversion`` is not used, because it also returns True
for adapters that cannot be converted.
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
from mlflow_finetune_plugin.logged_models.reward_models import refuse_reward_model

MAX_NATS = 0.05
"""The default limit in nats: how far a token's log-probability may be from the adapter's own."""


@dataclass(frozen=True)
class LoraExport:
    """An adapter written as plain LoRA, and how far it is from the original.

    ``max_nats`` and ``mean_nats`` are the absolute differences of log-probabilities to the adapter's reference, on
    ``tokens`` answer tokens. ``held_share`` is the share, 0 to 1, of the updates' squared norm that the rank holds, over
    all layers. ``lost`` are the weights that the adapter changes and LoRA cannot hold: embeddings, norms, biases, the output head.
    ``lost_max_nats`` is the largest difference that leaving out these alone makes; None where nothing is lost.
    """

    folder: Path
    rank: int
    layers: int
    held_share: float
    max_nats: float
    mean_nats: float
    tokens: int
    lost: tuple[str, ...] = ()
    lost_max_nats: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as ``conversion.json`` names them, where ``held_share`` is ``kept``. Without the folder."""
        values = asdict(self)
        del values["folder"]
        return {("kept" if key == "held_share" else key): value for key, value in values.items()}


def export_lora(
    uri: str,
    folder: Path,
    rank: int,
    base_model: str | None = None,
    *,
    max_nats: float = MAX_NATS,
    trust_code: bool = False,
) -> LoraExport:
    """Write the adapter as plain LoRA: PEFT's two files and ``conversion.json``. On an error ``folder`` stays empty.

    Args:
        uri: the logged model.
        folder: a new or empty folder.
        rank: rank of the LoRA, at least 1.
        base_model: the folder of the base where it has moved; None uses the place recorded in the model.
        max_nats: the largest difference allowed on any answer token.
        trust_code: run code in the model that this package does not know.

    Raises:
        ConfigError: the adapter changes no weights of linear layers, or also their biases and is not full fine-tuning.
        ReloadError: the written adapter, loaded back, differs by more than ``max_nats``.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError([f"--lora {folder}: is not empty; fix: name a new or empty folder"])
    if rank < 1:
        raise ConfigError([f"--rank {rank}: must be at least 1; fix: --rank 16"])
    logged = load_logged(uri, base_model, trust_code=trust_code)
    refuse_reward_model(logged.card, uri, "export --lora")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        lost, lost_nats = _lost(logged)
        base, layers, held_share = _write(logged, part, rank)
        nats = differences(PeftModel.from_pretrained(base, part).eval(), logged)
        largest, mean = float(nats.max()), float(nats.mean())
        if not largest <= max_nats:
            raise ReloadError(
                f"the LoRA of rank {rank} differs from the adapter by {largest:.2g} nats on a token (allowed {max_nats:g}; "
                f"the rank holds {held_share:.1%} of the update{_lost_text(lost, lost_nats)}); fix: use a higher --rank or a "
                f"higher --max-nats{', or export --merged' if lost else ''}"
            )
        result = LoraExport(folder, rank, layers, held_share, largest, mean, len(nats), lost, lost_nats)
        (part / "conversion.json").write_text(
            json.dumps(
                {**result.to_dict(), "folder": None, "from": uri, "adaptation": logged.card["adaptation"]}, indent=1
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
    """Write the adapter files; return the base without adapter, the layers converted, and the share that the rank holds."""
    model = on_full_weights(logged).eval()
    tensors: dict[str, torch.Tensor] = {}
    whole = held = 0.0
    layers = 0
    for name, layer in _layers(model):
        update = _update(name, layer)  # (out, in)
        left, sizes, right = torch.linalg.svd(update.float(), full_matrices=False)
        most = min(rank, len(sizes))
        roots = sizes[:most].sqrt()
        name = name.replace(".base_layer", "")  # a trained module that contains others keeps them inside
        tensors[f"base_model.model.{name}.lora_A.weight"] = _padded(roots[:, None] * right[:most], rank, 0)
        tensors[f"base_model.model.{name}.lora_B.weight"] = _padded(left[:, :most] * roots, rank, 1)
        whole += float((sizes**2).sum())
        held += float((sizes[:most] ** 2).sum())
        layers += 1
    if not layers:
        raise ConfigError(
            [
                f"adaptation {logged.card['adaptation']}: changes no weights of linear layers, so it cannot become LoRA; fix: serve it with --engine transformers"
            ]
        )
    names = [name.removeprefix("base_model.model.").rsplit(".lora_", 1)[0] for name in tensors]
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=_targets(model, names), task_type="CAUSAL_LM", lora_dropout=0.0
    )
    config.base_model_name_or_path = str(logged.card["base_model"]["name"])
    config.fan_in_fan_out = any(isinstance(layer.get_base_layer(), Conv1D) for _, layer in _layers(model))
    config.inference_mode = True
    config.save_pretrained(str(folder))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    return model.unload(), layers, held / whole if whole else 1.0


def _lost(logged: LoggedModel) -> tuple[tuple[str, ...], float | None]:
    """Return the changed weights that LoRA cannot hold, and by how many nats a token moves when these alone are left out."""
    model = logged.model
    converted = dict(_layers(model))
    at_start: dict[torch.nn.Parameter, torch.Tensor] = {}
    lost = []
    for name, layer in _full_layers(model):
        for weight_name, weight in layer.active_weights().items():
            before = layer.get_base_layer().get_parameter(weight_name)
            if (name in converted and weight_name == "weight") or torch.equal(weight, before):
                continue
            lost.append(f"{name.removesuffix('.layer')}.{weight_name}")
            for copy in getattr(layer, f"tuned_{weight_name}", {}).values():  # none where the weight is tied to another
                at_start[copy] = before.detach().to(copy.dtype)
    if not lost:
        return (), None
    trained = {copy: copy.data for copy in at_start}
    try:
        for copy, start in at_start.items():
            copy.data = start
        return tuple(sorted(lost)), float(differences(model, logged).max())
    finally:
        for copy, data in trained.items():
            copy.data = data


def _lost_text(lost: tuple[str, ...], nats: float | None) -> str:
    if nats is None:
        return ""
    names = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
    return f"; {len(lost)} changed weights are not in it ({names}), which alone moves a token by {nats:.2g} nats"


def _full_layers(model: PeftModel) -> Iterator[tuple[str, Any]]:
    """Yield each module with trained copies of whole weights, with its name in the base."""
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, BaseTunerLayer) and hasattr(type(module), "active_weights"):
            yield name, module


def _layers(model: PeftModel) -> Iterator[tuple[str, Any]]:
    """Yield each linear layer whose weights the adapter changes, with its name in the base.

    The output head is left out: engines read its weight directly.
    """
    if not hasattr(model.base_model, "merge_and_unload"):
        return
    head = model.get_base_model().get_output_embeddings()
    for name, module in model.get_base_model().named_modules():
        is_head = any(module is part for part in (head, getattr(head, "layer", None)))
        is_linear = isinstance(module, BaseTunerLayer) and isinstance(module.get_base_layer(), torch.nn.Linear | Conv1D)
        if is_linear and not is_head:
            yield name, module


def _targets(model: PeftModel, names: list[str]) -> list[str]:
    """Return the last parts of the layers' names if these match no other layer, else the names."""
    endings = {name.rsplit(".", 1)[-1] for name in names}
    modules = (name.replace(".base_layer", "") for name, _ in model.get_base_model().named_modules())
    others = {name for name in modules if name.rsplit(".", 1)[-1] in endings} - set(names)
    return sorted(set(names) if others else endings)


def _update(name: str, layer: Any) -> torch.Tensor:
    """Return the merged weight minus the base's, (out, in)."""
    plain = layer.get_base_layer()
    before = plain.weight.detach().clone()
    bias = None if plain.bias is None else plain.bias.detach().clone()
    layer.merge(safe_merge=True)
    update = plain.weight.detach().clone() - before
    changed_bias = bias is not None and not torch.equal(plain.bias, bias)
    layer.unmerge()
    plain.weight.data.copy_(before)  # Unmerging divides or subtracts, which rounds; the copy is exact.
    if bias is not None:
        plain.bias.data.copy_(bias)
    if changed_bias and not hasattr(type(layer), "active_weights"):  # of full fine-tuning it is among the lost weights
        raise ConfigError([f"{name}: the adapter changes its bias, and LoRA has none; fix: export --merged"])
    return update.T if isinstance(plain, Conv1D) else update


def _padded(matrix: torch.Tensor, rank: int, axis: int) -> torch.Tensor:
    """Return the matrix with zeros appended along ``axis`` up to the rank: a small layer has fewer singular values."""
    missing = rank - matrix.shape[axis]
    if not missing:
        return matrix
    shape = list(matrix.shape)
    shape[axis] = missing
    return torch.cat([matrix, matrix.new_zeros(shape)], dim=axis)
