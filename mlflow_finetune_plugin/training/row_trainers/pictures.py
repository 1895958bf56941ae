"""The trainer of rows with pictures: sequences padded into a batch, and the pixels of their pictures beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.training.micro_batches import MicroBatchTrainer, sequence
from mlflow_finetune_plugin.training.packing import Batch, pad

PictureRow = tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]
"""Token ids and labels of one example, both (tokens,), and the names of its pictures in the renderer's store."""


class PictureTrainer(MicroBatchTrainer):
    """Reads the pictures of a micro-batch when it is computed, so that no more than those of one are in memory.

    Args:
        renderer: rendered the rows; its processor makes the pixels.
        arguments: those of ``MicroBatchTrainer``; its batching must not be ``packed``.
    """

    def __init__(self, *, renderer: ChatRenderer, **arguments: Any) -> None:
        assert renderer.pictures is not None
        self._inputs, self._store = renderer.pictures, renderer.picture_store
        arguments["args"].remove_unused_columns = False  # Trainer knows no column of pictures
        super().__init__(**arguments)

    @staticmethod
    def collate(features: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
        """Return the rows of a step without padding."""
        return {"rows": [(*sequence(row["input_ids"], row["labels"]), tuple(row["pictures"])) for row in features]}

    def sequences(self, row: Any) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """Return the one sequence of a row."""
        return ((row[0], row[1]),)

    def _batch(self, rows: Sequence[Any]) -> Batch:
        """Return the rows as one padded batch, whose inputs hold the pixels of all pictures in the order of the rows."""
        batch = pad([(ids, labels) for ids, labels, _ in rows], self.processing_class.pad_token_id)
        pictures = [[self._store.get(name) for name in names] for _, _, names in rows]
        device, dtype = batch.inputs["input_ids"].device, next(self.model.parameters()).dtype
        for name, value in self._inputs.tensors(pictures, batch.inputs["input_ids"]).items():
            batch.inputs[name] = value.to(device, dtype if value.is_floating_point() else value.dtype)
        return batch

    def _log_probs(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Return the log-probabilities of the scored tokens. TRL's fused head knows only models without pictures."""
        return -functional.cross_entropy(self._scored_logits(model, batch), batch.targets, reduction="none"), 0.0
