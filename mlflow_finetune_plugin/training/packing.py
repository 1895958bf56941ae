"""Divide the rows of an optimizer step into micro-batches with little padding, and build their tensors.

A *micro-batch* is the input of one forward and backward pass. The trainer draws the rows of a step; this module only
divides them, so loss and gradient do not depend on the division (`tests/training/test_packing.py`).

``padded``  rows in the order drawn, ``rows`` at a time, padded to the longest of them
``grouped`` rows of similar length together, padded, up to ``tokens``
``packed``  rows laid end to end in one sequence of up to ``tokens``; attention ends at each row's borders
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal

import torch

from mlflow_finetune_plugin.data.tokens.token_file import IGNORED_LABEL

Batching = Literal["padded", "grouped", "packed"]
Row = tuple[torch.Tensor, torch.Tensor]
"""Token ids and labels of one example, both (tokens,); the label of a position is its own token."""


@dataclass(frozen=True)
class MicroBatches:
    """The division of a step: at most ``rows`` (padded) or ``tokens``, padding included, per micro-batch."""

    batching: Batching
    rows: int
    tokens: int

    def divide(self, lengths: Sequence[int]) -> list[list[int]]:
        """Return the row indices of each micro-batch. A row longer than ``tokens`` gets a micro-batch alone."""
        if self.batching == "padded":
            return [
                list(range(start, min(start + self.rows, len(lengths)))) for start in range(0, len(lengths), self.rows)
            ]
        order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
        return (
            _grouped(order, lengths, self.tokens)
            if self.batching == "grouped"
            else _packed(order, lengths, self.tokens)
        )

    def halved(self, lengths: Sequence[int]) -> MicroBatches | None:
        """Return a division of half the size, or None where every row already has a micro-batch alone."""
        shared = [part for part in self.divide(lengths) if len(part) > 1]
        if not shared:
            return None
        largest = max(self.size(part, lengths) for part in shared)
        rows = max(len(part) for part in shared)
        return replace(self, rows=max(1, rows // 2), tokens=max(1, largest // 2))

    def size(self, part: Sequence[int], lengths: Sequence[int]) -> int:
        """Return the tokens that a micro-batch computes, padding included."""
        row_lengths = [lengths[i] for i in part]
        return sum(row_lengths) if self.batching == "packed" else len(row_lengths) * max(row_lengths)


def _grouped(order: list[int], lengths: Sequence[int], tokens: int) -> list[list[int]]:
    parts: list[list[int]] = []
    for i in order:  # Longest first, so the first row of a part decides its width.
        if parts and (len(parts[-1]) + 1) * lengths[parts[-1][0]] <= tokens:
            parts[-1].append(i)
        else:
            parts.append([i])
    return parts


def _packed(order: list[int], lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Pack first fit, longest first: at most 11/9 of the minimal number of parts (Johnson 1973)."""
    parts: list[list[int]] = []
    free: list[int] = []
    for i in order:
        index = next((index for index, room in enumerate(free) if room >= lengths[i]), None)
        if index is None:
            parts.append([i])
            free.append(tokens - lengths[i])
        else:
            parts[index].append(i)
            free[index] -= lengths[i]
    return parts


@dataclass(frozen=True)
class Batch:
    """A micro-batch as tensors.

    ``inputs`` are the model's arguments and ``labels`` has the shape of ``input_ids``. The logits at position ``keep[i]``
    of the flattened batch predict ``targets[i]``, a token of row ``rows[i]``; all three are (scored tokens,).
    """

    inputs: dict[str, Any]
    labels: torch.Tensor
    keep: torch.Tensor
    targets: torch.Tensor
    rows: torch.Tensor
    is_packed: bool

    def sums(self, values: torch.Tensor, rows: int) -> torch.Tensor:
        """Return the sum of the values, (scored tokens,), for each of so many rows: (rows,)."""
        return torch.zeros(rows, dtype=values.dtype, device=values.device).index_add(0, self.rows, values)


def pad(rows: Sequence[Row], pad_token_id: int) -> Batch:
    """Return a batch with ``input_ids`` and ``attention_mask``, (rows, longest), padded on the right."""
    ids = [row[0] for row in rows]
    labels = _padded([_scored_only(row[1]) for row in rows], IGNORED_LABEL)
    inputs = {
        "input_ids": _padded(ids, pad_token_id),
        "attention_mask": _padded([torch.ones_like(row_ids) for row_ids in ids], 0),
    }
    row_of_token = torch.arange(len(ids), device=labels.device).repeat_interleave(labels.shape[1])
    return _batch(inputs, labels, row_of_token, is_packed=False)


def pack(rows: Sequence[Row]) -> Batch:
    """Return a batch of one sequence: ``input_ids`` and ``position_ids``, (1, tokens), positions from 0 in each row.

    Flash attention reads ``cu_seq_lens_q``/``k`` and ``max_length_q``/``k``; ``packed_attention`` reads ``row_lengths``.
    """
    ids = torch.cat([row[0] for row in rows])
    lengths = [len(row[0]) for row in rows]
    borders = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=ids.device)
    inputs = {
        "input_ids": ids[None],
        "position_ids": torch.cat([torch.arange(length, device=ids.device) for length in lengths])[None],
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
        "row_lengths": tuple(lengths),
    }
    labels = torch.cat([_scored_only(row[1]) for row in rows])[None]
    row_of_token = torch.arange(len(rows), device=ids.device).repeat_interleave(
        torch.tensor(lengths, device=ids.device)
    )
    return _batch(inputs, labels, row_of_token, is_packed=True)


def _batch(inputs: dict[str, Any], labels: torch.Tensor, row_of_token: torch.Tensor, *, is_packed: bool) -> Batch:
    flat = labels.flatten()
    scored = (flat != IGNORED_LABEL).nonzero().flatten()
    return Batch(inputs, labels, scored - 1, flat[scored], row_of_token[scored], is_packed)


def _scored_only(labels: torch.Tensor) -> torch.Tensor:
    """Return the labels with the first one ignored: in a packed batch the row before would predict it."""
    labels = labels.clone()
    labels[0] = IGNORED_LABEL
    return labels


def _padded(parts: list[torch.Tensor], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=value)
