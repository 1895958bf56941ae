"""Graders in OpenAI's JSON form and with its names, run on this machine.

The room promises that a grader is checked before anything is scored, that its formula cannot run code, and that a message
names the place in the JSON.
"""

from __future__ import annotations

from mlflow_finetune_plugin.rewards.graders.grading import build_grader
from mlflow_finetune_plugin.rewards.graders.schema import grader_faults, parse_grader

__all__ = ["build_grader", "grader_faults", "parse_grader"]
