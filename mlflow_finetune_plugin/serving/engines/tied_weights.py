"""Make a base readable for vLLM if its file stores the tied embeddings only as the output layer.

Transformers ties them in both directions. vLLM (0.32) ignores ``lm_head.weight`` of a tied model and leaves the input
embeddings at zero without an error, so that every token gets the same probability. Older training scripts write such files.
"""

from __future__ import annotations

import json
from pathlib import Path

from mlflow_finetune_plugin.base_models.weights_digest import (
    INPUT_EMBEDDINGS,
    OUTPUT_LAYER,
    stored_names,
    stores_output_layer_alone,
)
from mlflow_finetune_plugin.errors import ServingError

_ADDED = "model-embed-tokens.safetensors"
_INDEX = "model.safetensors.index.json"


def readable_by_vllm(base: Path, folder: Path) -> Path:
    """Return ``base``, or ``folder`` with links to its files and a copy of the tied weights under the input's name.

    The copy is as large as the embeddings. Raises ServingError when ``folder`` cannot be written.
    """
    if not stores_output_layer_alone(base):
        return base
    try:
        _lay_out(base, folder, stored_names(base))
    except OSError as error:
        raise ServingError(f"{folder} cannot be written: {error.strerror or error}") from error
    return folder


def _lay_out(base: Path, folder: Path, files_by_name: dict[str, Path]) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for path in base.iterdir():
        link = folder / path.name
        link.unlink(missing_ok=True)
        if path.name != _INDEX:
            link.symlink_to(path.resolve())
    with safe_open(files_by_name[OUTPUT_LAYER], "pt") as weights:
        save_file({INPUT_EMBEDDINGS: weights.get_tensor(OUTPUT_LAYER)}, folder / _ADDED, metadata={"format": "pt"})
    names = {name: path.name for name, path in files_by_name.items()} | {INPUT_EMBEDDINGS: _ADDED}
    (folder / _INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}), encoding="utf-8")
