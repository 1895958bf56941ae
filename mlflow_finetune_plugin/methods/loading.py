"""Load methods by name: the built-in ones, and those that other packages add through entry points."""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Literal, cast, overload

from mlflow_finetune_plugin.errors import ConfigError, unknown
from mlflow_finetune_plugin.methods.contract import Adaptation, Kind, Objective
from mlflow_finetune_plugin.methods.contract_faults import contract_faults, members
from mlflow_finetune_plugin.section import Section

_PACKAGES: dict[Kind, str] = {
    "adaptation": "mlflow_finetune_plugin.adaptations",
    "objective": "mlflow_finetune_plugin.objectives",
}

_ADAPTATION_TABLE = "mlflow_finetune_plugin.adaptations._peft"


def method_names(kind: Kind) -> list[str]:
    """Return all names of this kind, built-in ones first, each once."""
    built_in = built_in_methods(kind)
    return built_in + [point.name for point in _entry_points(kind) if point.name not in built_in]


def built_in_methods(kind: Kind) -> list[str]:
    """Return the names that come with this package."""
    return [*_files(kind), *_table(kind)]


def _files(kind: Kind) -> list[str]:
    package = importlib.import_module(_PACKAGES[kind])
    return [module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")]


def _table(kind: Kind) -> Mapping[str, ModuleType]:
    """Return the adaptations that are rows of a table and have no file, by name."""
    if kind == "objective":
        return {}
    table: Mapping[str, ModuleType] = importlib.import_module(_ADAPTATION_TABLE).MODULES
    return table


def _refusal(kind: Kind, name: str) -> str | None:
    """Return why a method that PEFT has is not offered; None for a name that PEFT does not have."""
    refused: Mapping[str, str] = importlib.import_module(_ADAPTATION_TABLE).REFUSED
    return refused.get(name) if kind == "adaptation" else None


@overload
def load_method(kind: Literal["adaptation"], name: str) -> Adaptation: ...
@overload
def load_method(kind: Literal["objective"], name: str) -> Objective: ...
@overload
def load_method(kind: Kind, name: str) -> Adaptation | Objective: ...
def load_method(kind: Kind, name: str) -> Adaptation | Objective:
    """Return a method that satisfies its contract.

    Raises:
        ConfigError: the name is unknown, or its module cannot be imported or breaks the contract; the message names
            every missing or wrong member.
    """
    if name in _files(kind):
        return _complete(kind, importlib.import_module(f"{_PACKAGES[kind]}.{name}"))
    if name in _table(kind):
        return _complete(kind, _table(kind)[name])
    for point in _entry_points(kind):
        if point.name == name:
            return _complete(kind, _load_checked(kind, point))
    reason = _refusal(kind, name)
    if reason is not None:
        raise ConfigError([f"{kind} {name!r} of PEFT is not offered: {reason}"])
    raise ConfigError([unknown(kind, name, method_names(kind))])


def method_module(method: Adaptation | Objective) -> ModuleType:
    """Return the module behind a method that ``load_method`` returned."""
    return cast(_CompleteMethod, method).module


class _CompleteMethod:
    """A module's members, and the defaults of the optional ones. Read-only."""

    def __init__(self, module: ModuleType, contract: type) -> None:
        present = {name: getattr(module, name) for name in members(contract) if hasattr(module, name)}
        self.__dict__.update(present, module=module, __doc__=module.__doc__)

    module: ModuleType
    Options = Section  # replaces the protocol's property, which would hide the module's own

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name}: a loaded method is read-only")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _CompleteMethod) and other.module is self.module

    def __hash__(self) -> int:
        return hash(self.module)


class _CompleteAdaptation(_CompleteMethod, Adaptation):
    """Inherits the defaults of the optional members from the protocol."""


class _CompleteObjective(_CompleteMethod, Objective):
    """Inherits the defaults of the optional members from the protocol."""


def _complete(kind: Kind, module: ModuleType) -> Adaptation | Objective:
    if kind == "adaptation":
        return _CompleteAdaptation(module, Adaptation)  # type: ignore[abstract]
    return _CompleteObjective(module, Objective)  # type: ignore[abstract]


def _entry_points(kind: Kind) -> importlib.metadata.EntryPoints:
    return importlib.metadata.entry_points(group=f"mlflow_finetune.{kind}s")


def _load_checked(kind: Kind, point: importlib.metadata.EntryPoint) -> ModuleType:
    try:
        module = point.load()
    except Exception as error:  # the code of any package runs here
        raise ConfigError(
            [f"{kind} '{point.name}' from {point.value} cannot be imported: {type(error).__name__}: {error}"]
        ) from error
    faults = list(contract_faults(kind, module))
    if faults:
        raise ConfigError(
            [
                f"{kind} '{point.name}' from {point.value} does not satisfy the contract: {'; '.join(faults)}; "
                "fix: see docs/extending.md"
            ]
        )
    return cast(ModuleType, module)
