"""A base whose file holds its tied embeddings as the output layer alone, laid out so that vLLM reads them.

Transformers ties either way. vLLM (0.32) passes over ``lm_head.weight`` of a tied model and leaves the input embeddings at
zero, without a word: every token gets the same probability. Older training scripts write such files.
"""

from __future__ import annotations

import json
from pathlib import Path

from mlflow_finetune_plugin.errors import ServingError
from mlflow_finetune_plugin.weights_digest import weight_files

_OUTPUT = "lm_head.weight"
_INPUT = "model.embed_tokens.weight"
_ADDED = "model-embed-tokens.safetensors"
_INDEX = "model.safetensors.index.json"


def readable_by_vllm(base: Path, folder: Path) -> Path:
    """``base`` itself, or ``folder``: links to its files, and the tied weights once more under the name of the input's.

    Takes the disk of the embeddings. Raises ServingError when ``folder`` cannot be written.
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
