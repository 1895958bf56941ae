"""Run the whole chain: imitation, reward model, reinforcement learning. Then say how much more often replies are preferred.

python recipes/rlhf/chain.py                    # writes to the MLflow store of MLFLOW_TRACKING_URI
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow_finetune_plugin as ft

HERE = Path(__file__).resolve().parent
Steps = Mapping[str, Mapping[str, Any]]
"""Overrides of a step's recipe, as ``-P`` takes them, by the step's entry point."""


def run_chain(overrides: Steps) -> ft.RunResult:
    """Run the three steps one after another, and return the last one."""
    imitation = ft.run(HERE / "sft", "lora", overrides.get("lora"), experiment_name=HERE.name)
    print(imitation.summary, flush=True)
    grader = ft.run(HERE / "reward", "reward", overrides.get("reward"), experiment_name=HERE.name)
    print(grader.summary, flush=True)
    versions = {"start_from": imitation.model_uri, "reward": [{"model": grader.model_uri, "name": "taste"}]}
    return ft.run(HERE, "rloo", {**versions, **overrides.get("rloo", {})}, experiment_name=HERE.name)


def preferred_shares(metrics: Mapping[str, float]) -> str:
    """Return the share of held-out notes with a preferred reply before and after the reinforcement learning."""
    before, after = metrics["eval/start/preferred"], metrics["eval/adapter/preferred"]
    low, high = (metrics[f"eval/gain_over_start_{end}/preferred"] for end in ("low", "high"))
    return f"preferred replies: {before:.3f} -> {after:.3f}, gain {after - before:+.3f} ({low:+.3f}..{high:+.3f})"


def main() -> int:
    """Run the chain and return the exit code: 0 only if replies are preferred more often."""
    result = run_chain({})
    print(result.summary)
    print(preferred_shares(result.metrics))
    return 0 if result.metrics["eval/gain_over_start_low/preferred"] > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
