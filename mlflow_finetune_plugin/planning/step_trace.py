"""Measure the memory and work of one micro-batch without weights: run the real model and adaptation on torch's meta device.

Every tensor that forward and backward allocate is counted while it exists, so no formulas for architectures, adaptations
or gradient checkpointing are needed. Memory that a kernel allocates internally is not counted.
"""

from __future__ import annotations

import inspect
import random
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft import PeftModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import AttentionInterface, PreTrainedModel

from mlflow_finetune_plugin.base_models.loading import BaseModel, empty_model, empty_score_model
from mlflow_finetune_plugin.errors import BaseModelError, one_line
from mlflow_finetune_plugin.internals.transformers import attention_kernel, last_rewards, score_head
from mlflow_finetune_plugin.methods import Adaptation, ModelKind

_TRACED = "traced"
_CHECKPOINTING = {"use_reentrant": False}


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch of ``rows`` rows of ``row_tokens`` tokens; ``scored`` tokens of all rows together carry loss.

    ``loss`` says how the loss is computed: from the ``logits`` of the scored tokens, from ``all_logits``, ``fused``, by
    TRL's head in chunks of tokens, or from ``rewards``, one number for each row.
    """

    rows: int
    row_tokens: int
    scored: int
    packs: bool
    loss: Literal["logits", "all_logits", "fused", "rewards"]

    @property
    def tokens(self) -> int:
        """Tokens computed, padding included."""
        return self.rows * self.row_tokens


@dataclass(frozen=True)
class StepTrace:
    """The peak of bytes beside the weights, without new gradients, and the work.

    ``flops`` counts two per multiplication of matrix products, attention without its causal half. ``bytes_moved`` is what
    operations write, or read where that is more. ``operations`` is their number.
    """

    peak_bytes: int
    saved_bytes: int
    flops: int
    bytes_moved: int
    operations: int


@dataclass(frozen=True)
class AdaptedModel:
    """The model without weights; ``trainable`` parameters in ``tensors``, and the bytes in which training holds them."""

    model: PeftModel
    trainable: int
    trainable_bytes: int
    tensors: int
    vocabulary: int
    """Tokens of the output layer; 1 of a score head."""

    def trace(self, batch: MicroBatch, *, checkpointing: bool, accumulates: bool) -> StepTrace:
        """Trace forward and backward of one micro-batch.

        Args:
            batch: its shape.
            checkpointing: with gradient checkpointing.
            accumulates: whether gradients of earlier micro-batches exist already.

        Raises:
            UntraceableError: the model cannot run without weights.
        """
        model = self.model
        model.train()
        enable = model.gradient_checkpointing_enable if checkpointing else model.gradient_checkpointing_disable
        enable(**({"gradient_checkpointing_kwargs": _CHECKPOINTING} if checkpointing else {}))
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter) if accumulates and parameter.requires_grad else None
        existing = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]
        tracker = _Allocations(existing)
        with _untraceable_errors(), tracker:
            loss = _loss(model, batch)
            saved = tracker.live
            loss.backward()
        grads = 0 if accumulates else sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
        model.zero_grad(set_to_none=True)
        return tracker.result(saved, grads)

    def trace_answers(self, rows: int, row_tokens: int, columns: int) -> int:
        """Return the peak of bytes beside the weights of a forward pass into the cache, without gradients.

        Args:
            rows: rows in the batch.
            row_tokens: tokens of each row.
            columns: logits kept per row.
        """
        self.model.eval()
        tracker = _Allocations([*self.model.parameters(), *self.model.buffers()])
        with _untraceable_errors(), torch.no_grad(), tracker:
            ids = torch.zeros((rows, row_tokens), dtype=torch.long, device="meta")
            if score_head(self.model.get_base_model()) is not None:
                last_rewards(self.model.get_base_model(), {"input_ids": ids}, ids[:, 0])
                return tracker.peak
            keep = {"logits_to_keep": columns} if self._keeps else {}
            output = self.model(input_ids=ids, use_cache=True, **keep)
            first_row = output.logits[:1].float().log_softmax(-1)
        del output, first_row
        return tracker.peak

    @property
    def _keeps(self) -> bool:
        return "logits_to_keep" in inspect.signature(self.model.get_base_model().forward).parameters


def adapted_model(
    base: BaseModel, adaptation: Adaptation, options: Any, *, seed: int, kind: ModelKind = "causal"
) -> AdaptedModel:
    """Apply the adaptation to the base on the meta device. Restores the random states of the process.

    Raises:
        BaseModelError: ``kind`` is ``score``, and the base has no score head or the adaptation does not train it.
    """
    with (
        _preserved_random_states(),
        tempfile.TemporaryDirectory(prefix="mlflow-finetune-") as folder,
        torch.device("meta"),
    ):
        empty = empty_score_model(base) if kind == "score" else empty_model(base)
        if base.quantization == "int8":
            _keep_inputs(empty)
        apply = partial(_apply_to_score_model, adaptation) if kind == "score" else adaptation.apply
        model = apply(empty, adaptation.meta_options(options), seed=seed, folder=Path(folder))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if base.quantization is not None:  # TRL casts adapters on a quantised base to bfloat16.
        for parameter in trained:
            parameter.data = parameter.data.to(torch.bfloat16)
    _attend_traceably(model)
    return AdaptedModel(
        model,
        trainable=sum(parameter.numel() for parameter in trained),
        trainable_bytes=sum(parameter.nbytes for parameter in trained),
        tensors=len(trained),
        vocabulary=1 if kind == "score" else int(model.get_output_embeddings().weight.shape[0]),
    )


def _apply_to_score_model(
    adaptation: Adaptation, model: PreTrainedModel, options: Any, *, seed: int, folder: Path
) -> PeftModel:
    fix = (
        "-P adaptation=lora, or let its PEFT config have the task_type that mlflow_finetune_plugin.adaptations.task_type "
        "returns for the model"
    )
    try:
        adapted = adaptation.apply(model, options, seed=seed, folder=folder)
    except AttributeError as error:  # PEFT looks for methods of models that generate
        raise BaseModelError(f"this adaptation cannot change a reward model ({one_line(error)}); fix: {fix}") from error
    head = score_head(adapted.get_base_model())
    if head is None or not any(parameter.requires_grad for parameter in head.parameters()):
        raise BaseModelError(f"this adaptation does not train the score head, which a reward model needs; fix: {fix}")
    return adapted


def _loss(model: PeftModel, batch: MicroBatch) -> torch.Tensor:
    """Return the loss as training/micro_batches.py computes it."""
    shape = (1, batch.tokens) if batch.packs else (batch.rows, batch.row_tokens)
    inputs: dict[str, Any] = {"input_ids": torch.zeros(shape, dtype=torch.long, device="meta"), "use_cache": False}
    if batch.packs:
        inputs |= {
            "position_ids": torch.zeros(shape, dtype=torch.long, device="meta"),
            "row_lengths": (batch.row_tokens,) * batch.rows,
        }
    if batch.loss == "fused":
        labels = torch.zeros(shape, dtype=torch.long, device="meta")
        return -model(**inputs, labels=labels, fused_lm_head=True).log_probs.sum()
    if batch.loss == "rewards":
        return last_rewards(
            model.get_base_model(), inputs, torch.zeros(batch.rows, dtype=torch.long, device="meta")
        ).sum()
    keep = torch.zeros(batch.scored, dtype=torch.long, device="meta")
    if batch.loss == "logits":
        logits = model(**inputs, logits_to_keep=keep).logits[0]
    else:
        logits = model(**inputs).logits.flatten(0, 1)[keep]
    logits = logits.float()
    logits.detach().argmax(-1)
    return torch.nn.functional.cross_entropy(
        logits, torch.zeros(batch.scored, dtype=torch.long, device="meta"), reduction="sum"
    )


def _keep_inputs(model: PreTrainedModel) -> None:
    """Let linear layers keep their input until backward, as bitsandbytes' int8 layers do (MatMul8bitLt, ctx.tensors)."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings():
            module.forward = partial(_InputKept.apply, module)


class _InputKept(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, module: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        ctx.module, ctx.x = module, x
        return torch.nn.functional.linear(x, module.weight, module.bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, gradient @ ctx.module.weight


def _attend_traceably(model: PeftModel) -> None:
    from mlflow_finetune_plugin.internals.trl import add_fused_lm_head

    base = model.get_base_model()
    if score_head(base) is None:
        add_fused_lm_head(base)
    base.config.pad_token_id = None  # With it some models search the ids for padding, and meta tensors have no values.
    if attention_kernel(base.config) == "sdpa":
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
    """Return causal attention by a fused kernel, which keeps its inputs, its output and one number per query.

    query, key, value: (batch, heads, tokens, head size). On the meta device torch itself would choose the kernel that
    keeps all scores.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    lengths = list(row_lengths) or [query.shape[2]]
    rows = zip(query.split(lengths, dim=2), key.split(lengths, dim=2), value.split(lengths, dim=2), strict=True)
    return torch.cat([_FLASH(q, k, v, 0.0, True)[0] for q, k, v in rows], dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(_TRACED, _attention)

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_ATTENTION_PRODUCTS = {_FLASH: 2, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: 5}
"""Matrix products of tokens x tokens x head size in a fused kernel; the backward pass computes the scores again."""

_GROUPED = torch.ops.aten._grouped_mm.default


def _grouped_product(
    a: torch.Tensor,
    b: torch.Tensor,
    offs: torch.Tensor | None = None,
    bias: None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return an empty result of the experts' products; torch's own meta kernel supports bfloat16 only."""
    shape = {
        (2, 2): lambda: (offs.shape[0], a.shape[0], b.shape[1]),  # type: ignore[union-attr]
        (2, 3): lambda: (a.shape[0], b.shape[2]),
        (3, 2): lambda: (a.shape[1], b.shape[1]),
        (3, 3): lambda: (a.shape[0], a.shape[1], b.shape[2]),
    }[a.ndim, b.ndim]()
    return a.new_empty(shape, dtype=out_dtype or a.dtype)


def _grouped_flops(a: torch.Tensor, b: torch.Tensor) -> int:
    """Return the flops of the experts' products: each row of ``a`` is multiplied by one expert."""
    inner = a.shape[-1]
    return 2 * inner * (a.shape[0] * b.shape[-1] if a.ndim == 2 else a.shape[-2] * b.shape[-1])


class _Allocations(TorchDispatchMode):
    """Counts the bytes of every live storage, and the operations of matrix products."""

    def __init__(self, existing: list[torch.Tensor]) -> None:
        super().__init__()
        self.live = self.peak = self.flops = self.moved = self.operations = 0
        self._sizes: dict[int, int] = {tensor.untyped_storage()._cdata: 0 for tensor in existing}
        self._existing = existing  # Kept alive, so that no address is reused.

    def result(self, saved: int, gradients: int) -> StepTrace:
        return StepTrace(max(0, self.peak - gradients), saved, self.flops, self.moved, self.operations)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = (_grouped_product if function is _GROUPED else function)(*args, **(kwargs or {}))
        self.operations += 1
        products = self._products(function, args, kwargs or {}, result)
        self.flops += products
        outputs = [tensor for tensor in _flat(result) if isinstance(tensor, torch.Tensor)]
        is_new = [self._note(tensor.untyped_storage()) for tensor in outputs]
        if any(is_new) or function._schema.is_mutable:
            output_bytes = sum(tensor.nbytes for tensor in outputs)
            input_bytes = (
                0 if products else max((arg.nbytes for arg in args if isinstance(arg, torch.Tensor)), default=0)
            )
            self.moved += max(output_bytes, input_bytes)
        return result

    @staticmethod
    def _products(function: Any, args: Any, kwargs: Any, result: Any) -> int:
        """Return two per multiplication of a matrix product, 0 for every other operation."""
        packet = function._overloadpacket
        if packet in flop_registry:
            return int(flop_registry[packet](*args, **kwargs, out_val=result))
        if function is _GROUPED:
            return _grouped_flops(args[0], args[1])
        if packet not in _ATTENTION_PRODUCTS:
            return 0
        query = args[_ATTENTION_PRODUCTS[packet] // 5]  # the backward's first argument is the output's gradient
        return int(2 * _ATTENTION_PRODUCTS[packet] * query.numel() * query.shape[-2])

    def _note(self, storage: torch.UntypedStorage) -> bool:
        """Count a storage; return whether it is new."""
        key = storage._cdata
        if key in self._sizes:
            return False
        self._sizes[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key)
        return True

    def _free(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def _flat(result: Any) -> tuple[Any, ...] | list[Any]:
    return result if isinstance(result, tuple | list) else (result,)


class UntraceableError(Exception):
    """The model branches on values of its tensors, or uses an operation without a meta kernel."""


@contextmanager
def _untraceable_errors() -> Iterator[None]:
    is_autocast_enabled = torch.is_autocast_enabled
    # TRL's fused head calls it with its tensors' device, and torch raises for meta.
    torch.is_autocast_enabled = lambda device="cpu": device != "meta" and is_autocast_enabled(device)
    try:
        yield
    except Exception as error:  # Any architecture's code runs here on meta tensors, so any exception is possible.
        raise UntraceableError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
    finally:
        torch.is_autocast_enabled = is_autocast_enabled


@contextmanager
def _preserved_random_states() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
