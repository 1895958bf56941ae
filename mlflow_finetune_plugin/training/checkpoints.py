"""Checkpoints that are whole or not counted: written aside, synced, sealed with a manifest of digests, renamed into place.

A checkpoint holds what is trained, the optimiser, the schedule, the random states, the position in the data, and what the
report has said so far; training that starts from it goes on as if it had never stopped.
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
    """A whole checkpoint. ``fingerprint`` is what must not differ for training to go on from it."""

    folder: Path
    step: int
    fingerprint: Mapping[str, Any]


class TornCheckpointError(Exception):
    """A checkpoint's file is missing, incomplete or changed."""


def seal(draft: Path, target: Path, *, step: int, fingerprint: Mapping[str, Any]) -> Checkpoint:
    """Makes ``draft`` the checkpoint ``target``: after a crash at any moment it is there whole, or not under that name."""
    digests = {}
    for path in sorted(path for path in draft.rglob("*") if path.is_file()):
        digests[path.relative_to(draft).as_posix()] = _digest(path)
        sync(path)
    manifest = {"step": step, "fingerprint": dict(fingerprint), "files": digests}
    (draft / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    sync(draft / MANIFEST)
    sync(draft)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():  # of an attempt that went the same way
        shutil.rmtree(target)
    draft.rename(target)
    sync(target.parent)
    return Checkpoint(target, step, fingerprint)


def opened(folder: Path) -> Checkpoint:
    """The checkpoint in this folder, every byte verified. Raises TornCheckpointError."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, digest in manifest["files"].items():
            if _digest(folder / name) != digest:
                raise TornCheckpointError(f"{folder}: {name} is not what was saved")
        return Checkpoint(folder, int(manifest["step"]), manifest["fingerprint"])
    except FileNotFoundError as error:
        raise TornCheckpointError(f"{folder}: {Path(error.filename).name} is missing") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TornCheckpointError(f"{folder}: {type(error).__name__}: {error}") from error


def newest_whole(folders: Iterable[Path], on_torn: Callable[[str], None]) -> Checkpoint | None:
    """The furthest whole checkpoint of these; each torn one that stands before it is told to ``on_torn``."""
    for folder in sorted(folders, key=step_of, reverse=True):
        try:
            return opened(folder)
        except TornCheckpointError as torn:
            on_torn(str(torn))
    return None


def in_folder(root: Path) -> list[Path]:
    """Folders that claim to be checkpoints, whole or torn."""
    return [path for path in root.glob(f"{PREFIX}*") if path.is_dir()] if root.is_dir() else []


def step_of(folder: Path) -> int:
    """The step that a checkpoint's name claims; -1 for one whose name says none."""
    number = folder.name.removeprefix(PREFIX)
    return int(number) if number.isdigit() else -1


def remove_old(root: Path, *, limit: int) -> None:
    """Leaves the newest ``limit`` checkpoints."""
    for folder in sorted(in_folder(root), key=step_of, reverse=True)[limit:]:
        shutil.rmtree(folder)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
