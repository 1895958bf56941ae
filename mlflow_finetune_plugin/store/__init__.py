"""Read and write the MLflow tracking store and registry.

The room promises that no other room knows an alias, a tag or an error code of MLflow: ``names`` lists every name that
this package writes, and errors of the server become errors of this package, with the fix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.store.clients import command_client
    from mlflow_finetune_plugin.store.model_ref import ModelRef, parse_model_ref
    from mlflow_finetune_plugin.store.people import who_moves
    from mlflow_finetune_plugin.store.registered_model import read_model
    from mlflow_finetune_plugin.store.registry import RegisteredVersion, find_model, register_adapter

__all__ = [
    "ModelRef",
    "RegisteredVersion",
    "command_client",
    "find_model",
    "parse_model_ref",
    "read_model",
    "register_adapter",
    "who_moves",
]

__getattr__ = names_on_first_use(
    __name__,
    {
        "ModelRef": "model_ref",
        "RegisteredVersion": "registry",
        "command_client": "clients",
        "find_model": "registry",
        "parse_model_ref": "model_ref",
        "read_model": "registered_model",
        "register_adapter": "registry",
        "who_moves": "people",
    },
)
