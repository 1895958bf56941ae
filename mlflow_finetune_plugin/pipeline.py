"""The pipeline of a training run: plan, train, log, prove, register."""

from __future__ import annotations

from typing import Any

from mlflow_finetune_plugin.config.run_config import RunConfig
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.stages.context import RunContext
from mlflow_finetune_plugin.stages.log import log
from mlflow_finetune_plugin.stages.plan import plan
from mlflow_finetune_plugin.stages.prove import prove
from mlflow_finetune_plugin.stages.records.gate import record_gate
from mlflow_finetune_plugin.stages.register import register
from mlflow_finetune_plugin.stages.train import train


def run(config: RunConfig, context: RunContext, report: Report) -> dict[str, Any]:
    """Train an adapter, prove it against its base and register it.

    Returns:
        ``model_uri``, ``model_id`` and ``summary``, the run in one line.
    """
    planned = plan(config, context, report)
    record_gate(planned, context, report)  # before the first step, so that a promotion can believe them
    trained = train(planned, context, report)
    logged = log(planned, trained, context, report)
    proof = prove(planned, logged, context, report)
    return register(planned, logged, proof, context, report)
