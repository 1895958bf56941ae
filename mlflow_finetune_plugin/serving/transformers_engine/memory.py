"""Check that an adapter fits into the memory of an engine's device before it is loaded."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from mlflow_finetune_plugin.errors import StoreError

_COPIES = 2
"""PEFT makes room for the weights first, and then reads the file beside it."""


def check_room(weights: Path, device: torch.device) -> None:
    """Raise StoreError where loading a weights file could exceed the free memory. Full fine-tuning saves files as large as a base.

    Args:
        weights: The adapter's safetensors file.
        device: The device of the base.
    """
    needed, free = _COPIES * weights.stat().st_size, _free_bytes(device)
    if needed > free:
        raise StoreError(
            f"{weights.parent}: loading it takes {needed / 2**20:,.0f} MiB, and {free / 2**20:,.0f} MiB are free on {device}; "
            "fix: serve fewer versions on this machine, or free memory"
        )


def _free_bytes(device: torch.device) -> int:
    """Return the free memory. What torch has reserved and does not use counts as free."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return psutil.virtual_memory().available
