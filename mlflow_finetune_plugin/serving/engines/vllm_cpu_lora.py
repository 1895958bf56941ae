"""Repair vLLM 0.32 on CPUs, where a request for the base gets the adapter of the last slot if others in the batch have one.

Rows without an adapter have the index -1. vLLM's GPU kernels skip them, but its CPU operators use the last slot
(vllm-project/vllm pull requests 48421 and 49656, open in November 2026). Here the first operator, which projects a row to an
adapter's rank, returns zeros for such rows, so that the next one adds nothing. vLLM loads this module in each of its processes,
through the entry-point group ``vllm.general_plugins``. In a vLLM that is repaired the module changes nothing.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

NAME = "mlflow_finetune_cpu_lora"
_MODULES = ("vllm.lora.ops.torch_ops.lora_ops", "vllm.lora.ops.torch_ops", "vllm.lora.punica_wrapper.punica_cpu")
_OPERATOR = "bgmv_shrink"


def register() -> None:
    """Replace vLLM's operator. It may be called again."""
    try:
        from vllm.lora.ops.torch_ops import lora_ops

        repaired = lora_ops.bgmv_shrink
    except (ImportError, AttributeError) as error:  # another vLLM: it must start all the same
        logger.warning("vLLM's CPU operators are not those that mlflow-finetune repairs: %s", error)
        return
    if not hasattr(repaired, "skips_rows_without_adapter"):
        repaired = skipping(repaired)
    for module_name in _MODULES:
        module = sys.modules.get(module_name)
        if hasattr(module, _OPERATOR):
            setattr(module, _OPERATOR, repaired)


def skipping(shrink: Callable[..., None]) -> Callable[..., None]:
    """Return ``shrink`` with zeros in the output rows that have a negative index."""

    def skipping_shrink(
        inputs: torch.Tensor,  # (rows, hidden)
        lora_b_weights: torch.Tensor,  # (slots, 1, rank, hidden)
        output_tensor: torch.Tensor,  # (rows, rank)
        lora_indices_tensor: torch.Tensor,  # (rows,)
        *more: Any,
        **named: Any,
    ) -> None:
        shrink(inputs, lora_b_weights, output_tensor, lora_indices_tensor, *more, **named)
        output_tensor.masked_fill_((lora_indices_tensor < 0).unsqueeze(-1), 0.0)

    skipping_shrink.skips_rows_without_adapter = True  # type: ignore[attr-defined]
    return skipping_shrink
