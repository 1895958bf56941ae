"""Held-out loss by one naive function, a row at a time, for both sides of a comparison."""

from __future__ import annotations

from typing import Any

import datasets
import torch


@torch.inference_mode()
def held_out_loss(model: Any, rows: datasets.Dataset) -> float:
    """Nats per loss token."""
    model.eval()
    total, count = 0.0, 0
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        logits = model(input_ids=ids.to(model.device)).logits[0, :-1].float().cpu()
        total += float(torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum", ignore_index=-100))
        count += int((labels[1:] != -100).sum())
    return total / count
