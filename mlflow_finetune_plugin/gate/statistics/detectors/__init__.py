"""Detect a change that begins at an unknown time, with a bound on false alarms however long the detectors run.

Each detector restarts its evidence, so that many good answers before a change hide nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.gate.statistics.detectors.comparison import ComparisonDetector
    from mlflow_finetune_plugin.gate.statistics.detectors.failures import FailureDetector

__all__ = [
    "ComparisonDetector",
    "FailureDetector",
]

__getattr__ = names_on_first_use(
    __name__,
    {
        "ComparisonDetector": "comparison",
        "FailureDetector": "failures",
    },
)
