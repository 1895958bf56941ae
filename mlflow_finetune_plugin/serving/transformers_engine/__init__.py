"""An engine on the Transformers library, with vLLM's routes, for machines and adapters that vLLM does not support.

The room promises the answers of the trained model: one base is held in memory, and each adapter applies exactly the module
tree that training used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.serving.transformers_engine.engine import TransformersEngine
    from mlflow_finetune_plugin.serving.transformers_engine.server import build_app
    from mlflow_finetune_plugin.serving.transformers_engine.settings import EngineSettings, read_settings

__all__ = ["EngineSettings", "TransformersEngine", "build_app", "read_settings"]

__getattr__ = names_on_first_use(
    __name__,
    {
        "EngineSettings": "settings",
        "TransformersEngine": "engine",
        "build_app": "server",
        "read_settings": "settings",
    },
)
