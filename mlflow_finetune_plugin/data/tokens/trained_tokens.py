"""Detect tokens that the base was hardly trained on, by comparing rows of its output embedding.

Training moves every token that occurs away from the others. Tokens that never occur end up with nearly the same row, or keep
their small initial norm ("Fishing for Magikarp", arXiv 2405.05417). An adapter does not change these rows: one that learns to end
on such a token mostly never ends, and one that has to write several of them confuses them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlflow_finetune_plugin.base_models.weights_digest import weight_files

_OUTPUTS = ("lm_head.weight", "embed_out.weight")
_INPUTS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
_BLOCK_ROWS = 8192
# A row counts as untrained if it points in the same direction as at least two others, or is shorter than a third of the median
# row. A single similar row is not a sign.
_SAME_COSINE = 0.98
_SAME_ROWS = 2
_SMALL_NORM = 1 / 3
_SAMPLE_ROWS = 1024


@dataclass(frozen=True)
class _Embedding:
    """The output embedding, mapped read-only from its file.

    The writable mapping of safetensors would have to fit into memory even though nothing is written.
    """

    name: str
    weights: np.ndarray  # (tokens, hidden), as stored
    is_bfloat16: bool

    def __len__(self) -> int:
        return int(self.weights.shape[0])

    def rows(self, chosen: slice | np.ndarray) -> torch.Tensor:
        """Return these rows as float32, (chosen, hidden)."""
        block = np.asarray(self.weights[chosen])
        if self.is_bfloat16:
            block = (block.astype(np.uint32) << 16).view(np.float32)
        return torch.from_numpy(block.astype(np.float32))


def untrained_reason(folder: Path, token_id: int) -> str | None:
    """Return why the base was hardly trained on ``token_id``; None if it was, or if the folder holds no weights."""
    embedding = _output_embedding(folder)
    if embedding is None:
        return None
    name, count = embedding.name, len(embedding)
    if token_id >= count:
        return f"it has no row in {name} ({count:,} rows)"
    row = embedding.rows(slice(token_id, token_id + 1))[0]  # (hidden,)
    norm = float(row.norm())
    if not norm > 0:
        return f"its row of {name} is all zeros"
    # Block by block: in float32 the embedding of a large vocabulary takes gigabytes.
    same, norms = 0, []
    for start in range(0, count, _BLOCK_ROWS):
        block = embedding.rows(slice(start, start + _BLOCK_ROWS))  # (rows, hidden)
        lengths = block.norm(dim=1)
        norms.append(lengths)
        same += int(((block @ row) > _SAME_COSINE * norm * lengths).sum())
    median = float(torch.cat(norms).median())
    if same - 1 >= _SAME_ROWS:
        return f"its row of {name} is the same as that of {same - 1:,} other tokens (cosine over {_SAME_COSINE})"
    if norm < _SMALL_NORM * median:
        return f"its row of {name} has norm {norm:.3g}, the median token {median:.3g}"
    return None


def untrained_tokens(folder: Path, token_ids: np.ndarray) -> np.ndarray:
    """Return the ``token_ids`` that the base was hardly trained on, by the same signs as ``untrained_reason``.

    Large vocabularies are compared with a sample of 1,024 evenly spread rows.

    Args:
        folder: The base's folder; without weights the result is empty.
        token_ids: Sorted and distinct ids.
    """
    embedding = _output_embedding(folder)
    if embedding is None or not len(token_ids):
        return token_ids[:0]
    count = len(embedding)
    sample = np.unique(np.linspace(0, count - 1, min(count, _SAMPLE_ROWS)).astype(np.int64))
    sampled = embedding.rows(sample)  # (sample, hidden)
    median = float(sampled.norm(dim=1).median())
    sampled = torch.nn.functional.normalize(sampled, dim=1)
    unseen = [token_ids[token_ids >= count]]
    for start in range(0, count, _BLOCK_ROWS):
        in_block = token_ids[(token_ids >= start) & (token_ids < min(count, start + _BLOCK_ROWS))]
        if not len(in_block):
            continue
        block = embedding.rows(in_block)  # (in_block, hidden)
        norms = block.norm(dim=1, keepdim=True)
        alike = (block @ sampled.T > _SAME_COSINE * norms).sum(dim=1).numpy() - np.isin(in_block, sample)
        unseen.append(in_block[(alike >= _SAME_ROWS) | (norms[:, 0] < _SMALL_NORM * median).numpy()])
    return np.sort(np.concatenate(unseen))


def embedding_rows(folder: Path) -> int | None:
    """Return how many tokens the base's input embedding has a row for; None if the folder holds no such weights."""
    for path in weight_files(folder):
        for name, entry in _header(path)[1].items():
            if name.endswith(_INPUTS):
                return int(entry["shape"][0])
    return None


def _output_embedding(folder: Path) -> _Embedding | None:
    """Return the output embedding, or the input embedding where both are tied; None if there is none or its type is unknown."""
    entries: dict[str, tuple[Path, int, dict[str, Any]]] = {}
    for path in weight_files(folder):
        start, header = _header(path)
        entries.update({name: (path, start, entry) for name, entry in header.items() if name != "__metadata__"})
    for endings in (_OUTPUTS, _INPUTS):
        for name, (path, start, entry) in entries.items():
            if name.endswith(endings):
                return _mapped(name, path, start, entry)
    return None


def _mapped(name: str, path: Path, start: int, entry: dict[str, Any]) -> _Embedding | None:
    kinds = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}
    if entry["dtype"] not in kinds:
        return None
    offset = start + int(entry["data_offsets"][0])
    weights = np.memmap(path, dtype=kinds[entry["dtype"]], mode="r", offset=offset, shape=tuple(entry["shape"]))
    return _Embedding(name, weights, entry["dtype"] == "BF16")


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """Return where the numbers of a safetensors file start, and its header."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return 8 + length, dict(json.loads(stream.read(length)))
