"""Attention over rows packed end to end in one sequence. Each row attends to itself only.

It needs no mask of tokens x tokens and computes nothing beyond a row. It is registered in transformers under the names in
``PACKED``. Flash attention kernels handle row borders themselves and are not replaced. In half precision on a GPU torch's
variable-length kernel computes all rows in one call; elsewhere they are computed one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from peft import PeftModel
from transformers import AttentionInterface

from mlflow_finetune_plugin.errors import TrainingError
from mlflow_finetune_plugin.internals.transformers import attention_kernel

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # before torch 2.10
    varlen_attn = None
if varlen_attn is not None and not {"window_size", "enable_gqa"} <= set(signature(varlen_attn).parameters):
    varlen_attn = None  # its first versions lack both

PACKED = {"sdpa": "packed_sdpa", "eager": "packed_eager"}
"""The model's own attention -> the packed one with equal results: transformers' sdpa ignores soft capping, eager applies it."""


def packed_rows(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    row_lengths: Sequence[int],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Return causal attention inside each row, (1, tokens, heads, head size).

    query, key and value are (1, heads, tokens, head size); key and value may have fewer heads. ``row_lengths`` are the
    tokens of each row in order. ``sliding_window`` counts the query's own token; None means the whole row. ``softcap``
    limits the scores and applies in the eager variant only. ``s_aux`` are attention sinks, (heads,): a score of each head that
    takes a share of the attention and adds nothing.

    Raises:
        TrainingError: the model passes its own mask, or attention sinks to the sdpa variant.
    """
    is_eager = attention_kernel(module.config) == PACKED["eager"]
    if attention_mask is not None or (s_aux is not None and not is_eager):
        raise TrainingError(
            "this model's attention uses its own masks or sinks, which packed rows do not support; "
            "fix: training.batching: grouped"
        )
    needs_scores = is_eager and not (softcap is None and s_aux is None)
    if not needs_scores and dropout == 0.0 and _takes_varlen(query):
        return _in_one_call(query, key, value, kwargs["cu_seq_lens_q"], max(row_lengths), scaling, sliding_window), None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    lengths = list(row_lengths)
    rows = zip(query.split(lengths, dim=2), key.split(lengths, dim=2), value.split(lengths, dim=2), strict=True)
    outputs = []
    for q, k, v in rows:
        window = _window(q.shape[2], sliding_window, q.device)
        if needs_scores:
            outputs.append(_from_scores(q, k, v, scaling, dropout, window, softcap, s_aux))
        else:
            outputs.append(
                torch.nn.functional.scaled_dot_product_attention(
                    q, k, v, attn_mask=window, is_causal=window is None, dropout_p=dropout, scale=scaling
                )
            )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _takes_varlen(query: torch.Tensor) -> bool:
    """Return whether torch.nn.attention.varlen applies: half precision, Ampere or later, head size up to 256 in steps of 8."""
    if not query.is_cuda or varlen_attn is None or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    size = query.shape[-1]
    return size <= 256 and size % 8 == 0 and torch.cuda.get_device_capability(query.device) >= (8, 0)


def _in_one_call(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    borders: torch.Tensor,
    longest: int,
    scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    """Return attention, (1, tokens, heads, head size), by one kernel call. ``borders``: starts of the rows and the end, (rows + 1,)."""
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))  # (tokens, heads, head size)
    reach = -1 if sliding_window is None else sliding_window - 1
    output = varlen_attn(
        q, k, v, borders, borders, longest, longest, scale=scaling, window_size=(reach, 0), enable_gqa=True
    )
    return output[None]  # type: ignore[no-any-return]


def _window(length: int, size: int | None, device: torch.device) -> torch.Tensor | None:
    """Return the mask (queries, keys) of a sliding window, or None where the window holds the whole row."""
    if size is None or length <= size:
        return None
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (distance >= 0) & (distance < size)


def _from_scores(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    dropout: float,
    window: torch.Tensor | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Return attention with Gemma 2's capped scores or GPT-OSS's sinks, for which torch has no fused kernel."""
    length = query.shape[2]
    allowed = torch.ones(length, length, dtype=torch.bool, device=query.device).tril() if window is None else window
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)  # (1, heads, queries, keys)
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)[..., :length]
    return torch.nn.functional.dropout(weights, p=dropout) @ value


for name in PACKED.values():
    AttentionInterface.register(name, packed_rows)


@contextmanager
def packed_attention(model: PeftModel) -> Iterator[None]:
    """Switch the model to packed attention inside the context. Raises TrainingError for a kernel that cannot be packed."""
    base = model.get_base_model()
    before = attention_kernel(base.config)
    if str(before).startswith("flash"):
        yield
        return
    if before not in PACKED:
        raise TrainingError(f"attention {before!r} cannot be packed; fix: training.batching: grouped")
    base.set_attn_implementation(PACKED[before])
    try:
        yield
    finally:
        base.set_attn_implementation(before)
