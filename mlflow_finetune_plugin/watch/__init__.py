"""Check again and again whether the champion is still the best version.

A check compares the champion with the version before it, on held-out rows, new rows, failures, latency and votes. The
room promises that every check is a run with its report, that a missing measurement never triggers an action, and that a
rollback happens only where it was requested and the verdict says so.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_finetune_plugin.watch.check import WatchCheck as WatchCheck
    from mlflow_finetune_plugin.watch.request import Watch as Watch
    from mlflow_finetune_plugin.watch.request import WatchOptions as WatchOptions
    from mlflow_finetune_plugin.watch.request import check_champion as check_champion
    from mlflow_finetune_plugin.watch.result import CheckResult as CheckResult

__all__ = [
    "CheckResult",
    "Watch",
    "WatchCheck",
    "WatchOptions",
    "check_champion",
]

_MODULES = {
    "CheckResult": "result",
    "Watch": "request",
    "WatchCheck": "check",
    "WatchOptions": "request",
    "check_champion": "request",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, because the modules behind it import scipy and matplotlib."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
