"""Serve registered models through OpenAI's API.

Every answer comes from a version whose engine passed its certificate, and carries a receipt that names the version. The
router follows the aliases of the registry: an alias moves without a lost request, and a version that fails its
certificate never answers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_finetune_plugin.serving.process import RunningService, serve
    from mlflow_finetune_plugin.serving.service import Service
    from mlflow_finetune_plugin.serving.settings import EngineLimits, ServiceSettings, check_settings

__all__ = ["EngineLimits", "RunningService", "Service", "ServiceSettings", "check_settings", "serve"]

_MODULES = {
    "EngineLimits": "settings",
    "RunningService": "process",
    "Service": "service",
    "ServiceSettings": "settings",
    "check_settings": "settings",
    "serve": "process",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, because most modules here need packages of the serve extra."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
