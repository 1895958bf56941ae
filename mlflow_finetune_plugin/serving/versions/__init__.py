"""Resolve names in requests to registered versions, and fetch those versions to this machine.

The room promises that a version's files are verified against their digests before an engine reads them, and that a file in
the store is never overwritten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.serving.versions.adapter_store import AdapterStore
    from mlflow_finetune_plugin.serving.versions.bases import Bases
    from mlflow_finetune_plugin.serving.versions.catalog import Catalog
    from mlflow_finetune_plugin.serving.versions.fetching import FetchedVersion, Fetcher
    from mlflow_finetune_plugin.serving.versions.scratch import ScratchFolder
    from mlflow_finetune_plugin.serving.versions.traffic import Traffic

__all__ = ["AdapterStore", "Bases", "Catalog", "FetchedVersion", "Fetcher", "ScratchFolder", "Traffic"]

__getattr__ = names_on_first_use(
    __name__,
    {
        "AdapterStore": "adapter_store",
        "Bases": "bases",
        "Catalog": "catalog",
        "FetchedVersion": "fetching",
        "Fetcher": "fetching",
        "ScratchFolder": "scratch",
        "Traffic": "traffic",
    },
)
