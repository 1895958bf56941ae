"""Route requests in OpenAI's format to the engine that holds the requested version.

The room promises that every answer carries a receipt with the version that gave it, and that an alias can move without a
lost request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.serving.router.follower import Follower
    from mlflow_finetune_plugin.serving.router.metrics import Metrics
    from mlflow_finetune_plugin.serving.router.requests import read_request
    from mlflow_finetune_plugin.serving.router.router import Router, RouterSettings
    from mlflow_finetune_plugin.serving.router.served_log import ServedLog
    from mlflow_finetune_plugin.serving.router.webhooks import is_true_webhook

__all__ = ["Follower", "Metrics", "Router", "RouterSettings", "ServedLog", "is_true_webhook", "read_request"]

__getattr__ = names_on_first_use(
    __name__,
    {
        "Follower": "follower",
        "Metrics": "metrics",
        "Router": "router",
        "RouterSettings": "router",
        "ServedLog": "served_log",
        "is_true_webhook": "webhooks",
        "read_request": "requests",
    },
)
