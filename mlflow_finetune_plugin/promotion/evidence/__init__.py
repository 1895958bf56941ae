"""Read what the gate weighs: a version's proof, its held-out rows, its answers and its latency.

The room promises that both versions of a comparison are measured on the same rows, that rows which either was trained on
do not count, and that reading changes nothing in MLflow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.promotion.evidence.answers import Sources
    from mlflow_finetune_plugin.promotion.evidence.collection import collect
    from mlflow_finetune_plugin.promotion.evidence.endpoint import RouterEndpoint
    from mlflow_finetune_plugin.promotion.evidence.held_out import HeldOut
    from mlflow_finetune_plugin.promotion.evidence.proven_version import ProvenVersion, read_version

__all__ = ["HeldOut", "ProvenVersion", "RouterEndpoint", "Sources", "collect", "read_version"]

__getattr__ = names_on_first_use(
    __name__,
    {
        "HeldOut": "held_out",
        "ProvenVersion": "proven_version",
        "RouterEndpoint": "endpoint",
        "Sources": "answers",
        "collect": "collection",
        "read_version": "proven_version",
    },
)
