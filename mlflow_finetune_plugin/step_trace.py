"""What one micro-batch takes, found by making it without weights: the real model and the real adaptation on torch's meta device.

Every tensor that forward and backward allocate is counted while it lives, so no table of formulas has to know an
architecture, an adaptation or gradient checkpointing. What a kernel allocates inside is not seen.
"""

from __future__ import annotations

import random
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from peft import PeftModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import AttentionInterface

from mlflow_finetune_plugin.base_model import BaseModel, empty_model
from mlflow_finetune_plugin.errors import PlanError

_TRACED = "traced"
_CHECKPOINTING = {"use_reentrant": False}


@dataclass(frozen=True)
class MicroBatch:
    """``rows`` of ``row_tokens`` each, of which ``scored`` carry loss, all rows together.

    ``loss``: ``logits`` of the scored tokens, ``all_logits`` of all, or ``fused``: TRL's head, a chunk of tokens at a time.
    """

    rows: int
    row_tokens: int
    scored: int
    packs: bool
    loss: Literal["logits", "all_logits", "fused"]

    @property
    def tokens(self) -> int:
        """Tokens computed, padding included."""
        return self.rows * self.row_tokens


@dataclass(frozen=True)
class StepTrace:
    """Bytes of what lives beside the weights at the worst moment (gradients left out), and floating point operations."""

    peak_bytes: int
    saved_bytes: int
    flops: int


@dataclass(frozen=True)
class AdaptedModel:
    """The model without weights, and the bytes of its parts as training holds them."""

    model: PeftModel
    trainable: int
    trainable_bytes: int
    largest_trainable: int
    """Parameters of the largest trainable tensor."""

    def trace(self, batch: MicroBatch, *, checkpointing: bool, accumulates: bool) -> StepTrace:
        """Forward and backward of one micro-batch; ``accumulates``: the gradients of earlier ones are there already."""
        model = self.model
        model.train()
        enable = model.gradient_checkpointing_enable if checkpointing else model.gradient_checkpointing_disable
        enable(**({"gradient_checkpointing_kwargs": _CHECKPOINTING} if checkpointing else {}))
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter) if accumulates and parameter.requires_grad else None
        known = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]
        tracker = _Allocations(known)
        with torch.device("meta"), tracker:
            loss = _loss(model, batch)
            saved = tracker.live
            loss.backward()
        grads = 0 if accumulates else sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
        model.zero_grad(set_to_none=True)
        return StepTrace(max(0, tracker.peak - grads), saved, tracker.flops)


def adapted_model(base: BaseModel, adaptation: ModuleType, options: Any, *, seed: int) -> AdaptedModel:
    """The adaptation applied to the base's shapes. Random states of the process are left as they were."""
    traced = getattr(adaptation, "weightless", lambda same: same)(options)
    with _random_states_kept(), tempfile.TemporaryDirectory(prefix="mlflow-finetune-") as folder:
        model = adaptation.apply(empty_model(base), traced, seed=seed, folder=Path(folder))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if base.quantization is not None:  # as TRL does
        for parameter in trained:
            parameter.data = parameter.data.to(torch.bfloat16)
    _attend_traceably(model)
    return AdaptedModel(
        model,
        trainable=sum(parameter.numel() for parameter in trained),
        trainable_bytes=sum(parameter.nbytes for parameter in trained),
        largest_trainable=max(parameter.numel() for parameter in trained),
    )


def _loss(model: PeftModel, batch: MicroBatch) -> torch.Tensor:
    """As training/micro_batches.py computes it."""
    shape = (1, batch.tokens) if batch.packs else (batch.rows, batch.row_tokens)
    inputs: dict[str, Any] = {"input_ids": torch.zeros(shape, dtype=torch.long), "use_cache": False}
    if batch.packs:
        inputs |= {"position_ids": torch.zeros(shape, dtype=torch.long), "row_lengths": (batch.row_tokens,) * batch.rows}
    if batch.loss == "fused":
        labels = torch.zeros(shape, dtype=torch.long)
        return -model(**inputs, labels=labels, fused_lm_head=True).log_probs.sum()
    keep = torch.zeros(batch.scored, dtype=torch.long)
    if batch.loss == "logits":
        logits = model(**inputs, logits_to_keep=keep).logits[0]
    else:
        logits = model(**inputs).logits.flatten(0, 1)[keep]
    logits = logits.float()
    logits.detach().argmax(-1)
    return torch.nn.functional.cross_entropy(logits, torch.zeros(batch.scored, dtype=torch.long), reduction="sum")


def _attend_traceably(model: PeftModel) -> None:
    from trl.trainer.utils import add_fused_lm_head

    base = model.get_base_model()
    add_fused_lm_head(base)
    if base.config._attn_implementation == "sdpa":
        base.set_attn_implementation(_TRACED)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    row_lengths: tuple[int, ...] = (),
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention by a fused kernel, which keeps its inputs, its output and one number a query.

    query, key, value: (batch, heads, tokens, head size). On the meta device torch itself would take the kernel that
    keeps all scores.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    lengths = list(row_lengths) or [query.shape[2]]
    rows = zip(query.split(lengths, dim=2), key.split(lengths, dim=2), value.split(lengths, dim=2), strict=True)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return torch.cat([kernel(q, k, v, 0.0, True)[0] for q, k, v in rows], dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(_TRACED, _attention)


class _Allocations(TorchDispatchMode):
    """Counts the bytes of every storage from its birth to its death, and the operations of matrix products."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.live = self.peak = self.flops = 0
        self._sizes: dict[int, int] = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self._known = known  # kept alive, so that no address is used again

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        count = flop_registry.get(function._overloadpacket)
        if count is not None:
            self.flops += int(count(*args, **(kwargs or {}), out_val=result))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


@contextmanager
def _random_states_kept() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
