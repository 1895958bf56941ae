"""Content digests and stored names of model folders. Standard library only: this file also travels inside every logged model."""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

OUTPUT_LAYER = "lm_head.weight"
INPUT_EMBEDDINGS = "model.embed_tokens.weight"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model, sorted by name; those of the index when there is one."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return sorted(folder / name for name in names)
    single = folder / "model.safetensors"
    return [single] if single.exists() else sorted(folder.glob("*.safetensors"))


def stored_names(folder: Path) -> dict[str, Path]:
    """The weights' names in the model's safetensors files, and the file of each. Reads the headers only."""
    names: dict[str, Path] = {}
    for path in weight_files(folder):
        with path.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        names |= {name: path for name in header if name != "__metadata__"}
    return names


def stores_output_layer_alone(folder: Path) -> bool:
    """Whether the tied embeddings of a Llama-like base are stored as its output layer only, as older training scripts do."""
    if not json.loads((folder / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings"):
        return False
    others = set(names := stored_names(folder)) - {OUTPUT_LAYER}
    is_named_so = all(name.startswith("model.") and "embed_tokens" not in name for name in others)
    return OUTPUT_LAYER in names and bool(others) and is_named_so


def score_model_arguments(folder: Path) -> dict[str, Any]:
    """What ``from_pretrained`` needs to read the embeddings of a base with a score head, which has no output layer to tie them to."""
    if not stores_output_layer_alone(folder):
        return {}
    return {"key_mapping": {f"^{re.escape(OUTPUT_LAYER)}$": INPUT_EMBEDDINGS}}


def base_digest(folder: Path) -> str:
    """SHA-256 (hex) over config.json and every weight file, names and bytes: what an adapter's numbers depend on."""
    return files_digest([folder / "config.json", *weight_files(folder)])


def folder_digest(folder: Path) -> str:
    """SHA-256 (hex) over all files directly in a folder."""
    return files_digest(path for path in folder.iterdir() if path.is_file())


def files_digest(paths: Iterable[Path]) -> str:
    """SHA-256 (hex) over names and contents, in name order."""
    total = hashlib.sha256()
    for path in sorted(paths, key=lambda p: p.name):
        total.update(path.name.encode() + b"\0" + _file_digest(path).encode() + b"\n")
    return total.hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
