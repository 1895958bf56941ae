"""Whether the base ever saw a token: its row of the output embedding beside the others, read block by block.

Training pulls every token that occurs apart from the rest; tokens that never occur are only pushed away, all alike, and
end as (nearly) the same row, or stay at their small start ("Fishing for Magikarp", arXiv 2405.05417). An adapter that
learns to end on such a token mostly never ends, and one that shall write several mixes them up: changes of the layers below
do not move their rows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from mlflow_finetune_plugin.weights_digest import weight_files

_OUTPUTS = ("lm_head.weight", "embed_out.weight")
_INPUTS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
_BLOCK_ROWS = 8192
_SAME_COSINE = 0.98
_SAME_ROWS = 2
_SMALL_NORM = 1 / 3
_SAMPLE_ROWS = 1024


def untrained_reason(folder: Path, token_id: int) -> str | None:
    """Why the base has hardly seen ``token_id``; None where nothing says so, or the folder holds no such weights."""
    found = _output_embedding(folder)
    if found is None:
        return None
    path, name = found
    with safe_open(path, "pt") as weights:
        rows = weights.get_slice(name)
        count = rows.get_shape()[0]
        if token_id >= count:
            return f"it has no row in {name} ({count:,} rows)"
        row = rows[token_id : token_id + 1].float()[0]  # (hidden,)
        norm = float(row.norm())
        if not norm > 0:
            return f"its row of {name} is all zeros"
        same, norms = 0, []
        for start in range(0, count, _BLOCK_ROWS):
            block = rows[start : start + _BLOCK_ROWS].float()  # (rows, hidden)
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
    """Which of ``token_ids`` (sorted, distinct) the base has hardly seen, by the same signs as ``untrained_reason``.

    In large vocabularies the row is compared with 1,024 others, evenly spread; empty where the folder holds no weights.
    """
    found = _output_embedding(folder)
    if found is None or not len(token_ids):
        return token_ids[:0]
    path, name = found
    with safe_open(path, "pt") as weights:
        rows = weights.get_slice(name)
        count = rows.get_shape()[0]
        sample = np.unique(np.linspace(0, count - 1, min(count, _SAMPLE_ROWS)).astype(np.int64))
        others = torch.cat([rows[int(i) : int(i) + 1] for i in sample]).float()  # (sample, hidden)
        median = float(others.norm(dim=1).median())
        others = torch.nn.functional.normalize(others, dim=1)
        unseen = [token_ids[token_ids >= count]]
        for start in range(0, count, _BLOCK_ROWS):
            own = token_ids[(token_ids >= start) & (token_ids < min(count, start + _BLOCK_ROWS))]
            if not len(own):
                continue
            block = rows[start : start + _BLOCK_ROWS][torch.from_numpy(own - start)].float()  # (own, hidden)
            norms = block.norm(dim=1, keepdim=True)
            alike = (block @ others.T > _SAME_COSINE * norms).sum(dim=1).numpy() - np.isin(own, sample)
            unseen.append(own[(alike >= _SAME_ROWS) | (norms[:, 0] < _SMALL_NORM * median).numpy()])
    return np.sort(np.concatenate(unseen))


def _output_embedding(folder: Path) -> tuple[Path, str] | None:
    """The file and name of the output embedding; the input embedding where both are one."""
    names: dict[str, Path] = {}
    for path in weight_files(folder):
        with safe_open(path, "pt") as weights:
            names.update(dict.fromkeys(weights.keys(), path))
    for endings in (_OUTPUTS, _INPUTS):
        for name, path in names.items():
            if name.endswith(endings):
                return path, name
    return None
