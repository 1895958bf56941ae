"""The run, tracking server and folders that every stage of the pipeline needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """Where a run lives: its MLflow run and its scratch folder."""

    run_id: str
    tracking_uri: str
    folder: Path
    processes: int = 1
    """How many share the training; this one is the first of them."""
