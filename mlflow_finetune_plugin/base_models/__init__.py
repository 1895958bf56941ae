"""Find, check, describe and load base models.

The room promises that a base's files are checked before anything is loaded, and that its weights are read last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.base_models.facts import BaseFacts
    from mlflow_finetune_plugin.base_models.files import check_base_files
    from mlflow_finetune_plugin.base_models.loading import BaseModel, find_base_model, load_base_model, load_tokenizer
    from mlflow_finetune_plugin.base_models.settings import BaseModelSettings
    from mlflow_finetune_plugin.base_models.weights_digest import base_digest

__all__ = [
    "BaseFacts",
    "BaseModel",
    "BaseModelSettings",
    "base_digest",
    "check_base_files",
    "find_base_model",
    "load_base_model",
    "load_tokenizer",
]

__getattr__ = names_on_first_use(
    __name__,
    {
        "BaseFacts": "facts",
        "BaseModel": "loading",
        "BaseModelSettings": "settings",
        "base_digest": "weights_digest",
        "check_base_files": "files",
        "find_base_model": "loading",
        "load_base_model": "loading",
        "load_tokenizer": "loading",
    },
)
