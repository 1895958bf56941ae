"""Content digests of model folders. Standard library only: this file also travels inside every logged model."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model, sorted by name; those of the index when there is one."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return sorted(folder / name for name in names)
    single = folder / "model.safetensors"
    return [single] if single.exists() else sorted(folder.glob("*.safetensors"))


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
