"""The virtual tokens of a model: token ids beyond its vocabulary that an adapter reads and that every prompt starts with.

Rows for training hold them, because the data room puts them in front. Held-out rows, probes and requests do not: the functions that
compute with a model put in front what the model has at that moment. So the base, the same model with the adapter disabled, gets none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def virtual_token_ids(model: torch.nn.Module) -> list[int]:
    """Return the ids that a prompt of this model starts with; none for a base, or while its adapter is disabled."""
    return list(getattr(model.get_input_embeddings(), "virtual_token_ids", ()))


def with_virtual_tokens(model: torch.nn.Module, rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the token ids of each row after the model's virtual tokens."""
    first = virtual_token_ids(model)
    return [[*first, *row] for row in rows]
