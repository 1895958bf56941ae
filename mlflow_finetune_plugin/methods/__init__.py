"""Load the methods of a training: an adaptation (how the base is changed) and an objective (what it learns from).

A method is a module. The built-in methods are the files in ``adaptations/`` and ``objectives/``, and the rows of the table
in ``adaptations/_peft/``; other packages add theirs through the entry-point groups ``mlflow_finetune.adaptations`` and ``mlflow_finetune.objectives``
(docs/extending.md). The room promises that a method which ``load_method`` returns has every member of its contract.
"""

from __future__ import annotations

from mlflow_finetune_plugin.methods.base_precision import precision_fault
from mlflow_finetune_plugin.methods.contract import (
    Adaptation,
    AdaptationModule,
    Kind,
    Method,
    ModelKind,
    Objective,
    ObjectiveModule,
    Quantization,
    Rollouts,
    RowForm,
    Sampler,
    Serving,
    TrainedDtype,
    TrainerContext,
)
from mlflow_finetune_plugin.methods.contract_faults import contract_faults
from mlflow_finetune_plugin.methods.loading import built_in_methods, load_method, method_module, method_names

__all__ = [
    "Adaptation",
    "AdaptationModule",
    "Kind",
    "Method",
    "ModelKind",
    "Objective",
    "ObjectiveModule",
    "Quantization",
    "Rollouts",
    "RowForm",
    "Sampler",
    "Serving",
    "TrainedDtype",
    "TrainerContext",
    "built_in_methods",
    "contract_faults",
    "load_method",
    "method_module",
    "method_names",
    "precision_fault",
]
