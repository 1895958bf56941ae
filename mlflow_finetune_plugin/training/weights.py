"""What is trained, as a file: by name and in its own precision, where PEFT's format may round or rename."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from mlflow_finetune_plugin.errors import TrainingError

WEIGHTS = "trainable.safetensors"


def trained_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of what is trained, on the CPU, by name."""
    return {
        name: parameter.detach().to("cpu", copy=True).contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def restore_weights(model: torch.nn.Module, folder: Path) -> None:
    """Puts saved weights in place of what is trained. Raises TrainingError when names or shapes differ."""
    saved = load_file(folder / WEIGHTS)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    shapes = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    if shapes != {name: tuple(parameter.shape) for name, parameter in trained.items()}:
        raise TrainingError(f"{folder / WEIGHTS}: holds other weights than are trained here")
    for name, parameter in trained.items():
        parameter.data = saved[name].to(parameter.device)
