"""Serve registered models through OpenAI's API.

Every answer comes from a version whose engine passed its certificate, and carries a receipt that names the version. The
router follows the aliases of the registry: an alias moves without a lost request, and a version that fails its
certificate never answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.serving.process import RunningService, serve
    from mlflow_finetune_plugin.serving.service import Service
    from mlflow_finetune_plugin.serving.settings import EngineLimits, ServiceSettings, check_settings

__all__ = ["EngineLimits", "RunningService", "Service", "ServiceSettings", "check_settings", "serve"]

__getattr__ = names_on_first_use(
    __name__,
    {
        "EngineLimits": "settings",
        "RunningService": "process",
        "Service": "service",
        "ServiceSettings": "settings",
        "check_settings": "settings",
        "serve": "process",
    },
)
