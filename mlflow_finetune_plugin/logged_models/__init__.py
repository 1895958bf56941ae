"""Log adapters as MLflow models, load them back, and export them in other forms.

The room promises that what is logged loads without this package and says what it was trained on. The model that is
evaluated and registered is the one that was loaded back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.logged_models.adapter import LoggedAdapter, log_adapter, reload_adapter
    from mlflow_finetune_plugin.logged_models.answers import Answerer
    from mlflow_finetune_plugin.logged_models.conversion import export_lora
    from mlflow_finetune_plugin.logged_models.loading import LoggedModel, load_logged
    from mlflow_finetune_plugin.logged_models.merging import export_merged

__all__ = [
    "Answerer",
    "LoggedAdapter",
    "LoggedModel",
    "export_lora",
    "export_merged",
    "load_logged",
    "log_adapter",
    "reload_adapter",
]

__getattr__ = names_on_first_use(
    __name__,
    {
        "Answerer": "answers",
        "LoggedAdapter": "adapter",
        "LoggedModel": "loading",
        "export_lora": "conversion",
        "export_merged": "merging",
        "load_logged": "loading",
        "log_adapter": "adapter",
        "reload_adapter": "adapter",
    },
)
