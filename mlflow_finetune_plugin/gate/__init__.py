"""Decide from evidence whether a version becomes, widens as or stays the champion.

The room promises to be pure: numbers go in and a verdict comes out. Nothing here reads a file, calls MLflow or knows a
version's name, so the same evidence and policy give the same verdict on every machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.gate.canary import judge_canary
    from mlflow_finetune_plugin.gate.canary_policy import CanaryPolicy
    from mlflow_finetune_plugin.gate.evidence import Evidence
    from mlflow_finetune_plugin.gate.policy import GatePolicy
    from mlflow_finetune_plugin.gate.verdict import Verdict, judge
    from mlflow_finetune_plugin.gate.watch import judge_watch
    from mlflow_finetune_plugin.gate.watch_policy import WatchPolicy

__all__ = ["CanaryPolicy", "Evidence", "GatePolicy", "Verdict", "WatchPolicy", "judge", "judge_canary", "judge_watch"]

__getattr__ = names_on_first_use(
    __name__,
    {
        "CanaryPolicy": "canary_policy",
        "Evidence": "evidence",
        "GatePolicy": "policy",
        "Verdict": "verdict",
        "WatchPolicy": "watch_policy",
        "judge": "verdict",
        "judge_canary": "canary",
        "judge_watch": "watch",
    },
)
