"""Save and restore the trained weights by name and in their own precision. PEFT's format may round or rename them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from mlflow_finetune_plugin.errors import TrainingError

WEIGHTS = "trainable.safetensors"


def trained_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of the trainable weights on the CPU, by name."""
    return {
        name: parameter.detach().to("cpu", copy=True).contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def restore_weights(model: torch.nn.Module, folder: Path) -> None:
    """Replace the trainable weights by saved ones. Raises TrainingError when names or shapes differ."""
    saved = load_file(folder / WEIGHTS)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    shapes = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    if shapes != {name: tuple(parameter.shape) for name, parameter in trained.items()}:
        raise TrainingError(
            f"{folder / WEIGHTS}: the names or shapes of its weights differ from this training's; fix: resume with the options of the earlier attempt"
        )
    for name, parameter in trained.items():
        parameter.data = saved[name].to(parameter.device)
