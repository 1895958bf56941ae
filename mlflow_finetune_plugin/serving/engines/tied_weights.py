"""Make a base readable for vLLM if its file stores the tied embeddings only as the output layer.

Transformers ties them in both directions. vLLM (0.32) ignores ``lm_head.weight`` of a tied model and leaves the input
embeddings at zero without an error, so that every token gets the same probability. Older training scripts write such files.
"""

from __future__ import annotations

import json
from pathlib import Path

from mlflow_finetune_plugin.base_models.weights_digest import weight_files
from mlflow_finetune_plugin.errors import ServingError

_OUTPUT = "lm_head.weight"
_INPUT = "model.embed_tokens.weight"
_ADDED = "model-embed-tokens.safetensors"
_INDEX = "model.safetensors.index.json"


def readable_by_vllm(base: Path, folder: Path) -> Path:
    """Return ``base``, or ``folder`` with links to its files and a copy of the tied weights under the input's name.

    The copy is as large as the embeddings. Raises ServingError when ``folder`` cannot be written.
    """
    from safetensors import safe_open

    if not json.loads((base / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings"):
        return base
    files_by_name: dict[str, Path] = {}
    for path in weight_files(base):
        with safe_open(path, "pt") as weights:
            files_by_name |= dict.fromkeys(weights.keys(), path)
    other_names = [name for name in files_by_name if name != _OUTPUT]
    if (
        _OUTPUT not in files_by_name
        or not other_names
        or any(not n.startswith("model.") or "embed_tokens" in n for n in other_names)
    ):
        return base
    try:
        _lay_out(base, folder, files_by_name)
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
    with safe_open(files_by_name[_OUTPUT], "pt") as weights:
        save_file({_INPUT: weights.get_tensor(_OUTPUT)}, folder / _ADDED, metadata={"format": "pt"})
    names = {name: path.name for name, path in files_by_name.items()} | {_INPUT: _ADDED}
    (folder / _INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}), encoding="utf-8")
