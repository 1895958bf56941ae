"""Run a user's scoring code in a process apart from the trainer.

The room promises that no process outlives its trainer, that a call which takes too long is ended with everything that it
started, and that secrets in the environment stay with the trainer.
"""

from __future__ import annotations

from mlflow_finetune_plugin.rewards.process.parent import ScoringProcess
from mlflow_finetune_plugin.rewards.process.target import Description, ScoringError, ScoringTarget

__all__ = ["Description", "ScoringError", "ScoringProcess", "ScoringTarget"]
