"""Read a recipe and its ``-P`` overrides into one frozen configuration.

The room promises that ``load_config`` raises every problem at once, each with its file and line and the fix, and that
it needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.config.evaluation import EvaluationConfig, load_evaluation_config
    from mlflow_finetune_plugin.config.reference import json_schema
    from mlflow_finetune_plugin.config.register_section import RegisterSettings
    from mlflow_finetune_plugin.config.run_config import RunConfig, draft_config, load_config, read_register

__all__ = [
    "EvaluationConfig",
    "RegisterSettings",
    "RunConfig",
    "draft_config",
    "json_schema",
    "load_config",
    "load_evaluation_config",
    "read_register",
]

__getattr__ = names_on_first_use(
    __name__,
    {
        "EvaluationConfig": "evaluation",
        "RegisterSettings": "register_section",
        "RunConfig": "run_config",
        "draft_config": "run_config",
        "json_schema": "reference",
        "load_config": "run_config",
        "load_evaluation_config": "evaluation",
        "read_register": "run_config",
    },
)
