"""What the stages of a run record in MLflow: data, policy and held-out rows, identity of a version, texts for people.

The room promises that everything a promotion relies on is recorded with its digest, before training can change it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_finetune_plugin.stages.records.data import record_data as record_data
    from mlflow_finetune_plugin.stages.records.description import run_description as run_description
    from mlflow_finetune_plugin.stages.records.gate import record_gate as record_gate
    from mlflow_finetune_plugin.stages.records.identity import Identity as Identity
    from mlflow_finetune_plugin.stages.records.trained_rows import record_trained_rows as record_trained_rows

_MODULES = {
    "Identity": "identity",
    "record_data": "data",
    "record_gate": "gate",
    "record_trained_rows": "trained_rows",
    "run_description": "description",
}

__all__ = ["Identity", "record_data", "record_gate", "record_trained_rows", "run_description"]


def __getattr__(name: str) -> Any:
    """Import a public name's module when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
