"""The run, tracking server and folder that every stage works with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunContext:
    """An MLflow run, the store that it is in, and its folder for files on this disk."""

    run_id: str
    tracking_uri: str
    folder: Path
    processes: int = 1
    """How many processes share the training; this is the first of them."""
