"""Finds adaptations and objectives: every file in ``adaptations/`` and ``objectives/``, and third parties' entry points.

A method is a module with a docstring naming its source and a frozen ``Options`` section; what else it must offer is
written in ARCHITECTURE.md (rooms "adaptations" and "objectives"). A broken third-party method is an error that names it,
raised when that method is asked for.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from mlflow_finetune_plugin.errors import ConfigError, unknown

Kind = Literal["adaptation", "objective"]
_PACKAGES: dict[Kind, str] = {
    "adaptation": "mlflow_finetune_plugin.adaptations",
    "objective": "mlflow_finetune_plugin.objectives",
}


@dataclass(frozen=True)
class Method:
    """What a training does: an adaptation and an objective, each with its resolved options."""

    adaptation: ModuleType
    adaptation_options: Any
    objective: ModuleType
    objective_options: Any


def method_names(kind: Kind) -> list[str]:
    """All names that can be used for this axis, built-in first, each once."""
    built_in = built_in_methods(kind)
    foreign = [point.name for point in _entry_points(kind)]
    return built_in + [name for name in foreign if name not in built_in]


def built_in_methods(kind: Kind) -> list[str]:
    """The names that come with this package."""
    package = importlib.import_module(_PACKAGES[kind])
    return [module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")]


def load_method(kind: Kind, name: str) -> ModuleType:
    """The module of a method. Raises ConfigError for an unknown name or one that cannot be imported."""
    if name in built_in_methods(kind):
        return importlib.import_module(f"{_PACKAGES[kind]}.{name}")
    for point in _entry_points(kind):
        if point.name == name:
            return _load_foreign(kind, point)
    raise ConfigError([unknown(kind, name, method_names(kind))])


def _entry_points(kind: Kind) -> importlib.metadata.EntryPoints:
    return importlib.metadata.entry_points(group=f"mlflow_finetune.{kind}s")


def _load_foreign(kind: Kind, point: importlib.metadata.EntryPoint) -> ModuleType:
    try:
        module = point.load()
    except Exception as error:
        raise ConfigError(
            [f"{kind} '{point.name}' from {point.value} cannot be imported: {type(error).__name__}: {error}"]
        ) from error
    if not isinstance(module, ModuleType) or not hasattr(module, "Options"):
        raise ConfigError([f"{kind} '{point.name}' from {point.value} is not a module with an Options section"])
    return module
