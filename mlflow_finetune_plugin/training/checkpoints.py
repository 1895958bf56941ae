"""Write and open checkpoints. A checkpoint is complete or it does not count.

Each is written in a draft folder, synced, sealed with a manifest of digests and renamed. It holds the trained weights,
optimizer, schedule, random states, position in the data and the report so far, so a resumed training continues as if it
had never stopped.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.durable_files import sync

MANIFEST = "manifest.json"
PREFIX = "checkpoint-"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint. Training resumes from it only where ``fingerprint`` (data, base, options) is the same."""

    folder: Path
    step: int
    fingerprint: Mapping[str, Any]


class TornCheckpointError(Exception):
    """A checkpoint's file is missing, incomplete or changed."""


def seal(draft: Path, target: Path, *, step: int, fingerprint: Mapping[str, Any]) -> Checkpoint:
    """Turn ``draft`` into the checkpoint ``target``. After a crash at any moment ``target`` is complete or absent."""
    digests = {}
    for path in sorted(path for path in draft.rglob("*") if path.is_file()):
        digests[path.relative_to(draft).as_posix()] = _digest(path)
        sync(path)
    manifest = {"step": step, "fingerprint": dict(fingerprint), "files": digests}
    (draft / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    sync(draft / MANIFEST)
    sync(draft)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():  # An earlier attempt saved the same step and was resumed from before it.
        shutil.rmtree(target)
    draft.rename(target)
    sync(target.parent)
    return Checkpoint(target, step, fingerprint)


def opened(folder: Path) -> Checkpoint:
    """Verify every byte of the checkpoint in this folder and return it. Raises TornCheckpointError."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, digest in manifest["files"].items():
            if _digest(folder / name) != digest:
                raise TornCheckpointError(f"{folder}: {name} has changed since it was saved")
        return Checkpoint(folder, int(manifest["step"]), manifest["fingerprint"])
    except FileNotFoundError as error:
        raise TornCheckpointError(f"{folder}: {Path(error.filename).name} is missing") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TornCheckpointError(f"{folder}: {type(error).__name__}: {error}") from error


def newest_whole(folders: Iterable[Path], on_torn: Callable[[str], None]) -> Checkpoint | None:
    """Return the complete checkpoint with the highest step, or None. ``on_torn`` receives a message for each torn one before it."""
    for folder in sorted(folders, key=step_of, reverse=True):
        try:
            return opened(folder)
        except TornCheckpointError as torn:
            on_torn(str(torn))
    return None


def in_folder(root: Path) -> list[Path]:
    """Return the folders with a checkpoint's name, complete or torn."""
    return [path for path in root.glob(f"{PREFIX}*") if path.is_dir()] if root.is_dir() else []


def step_of(folder: Path) -> int:
    """Return the step in a checkpoint's name, or -1 where the name has none."""
    number = folder.name.removeprefix(PREFIX)
    return int(number) if number.isdigit() else -1


def remove_old(root: Path, *, limit: int) -> None:
    """Delete all but the newest ``limit`` checkpoints."""
    for folder in sorted(in_folder(root), key=step_of, reverse=True)[limit:]:
        shutil.rmtree(folder)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
