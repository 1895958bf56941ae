"""Offer the names of a package without importing its modules, so that importing the package stays light."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def names_on_first_use(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for a package that imports the module of a name when the name is first used.

    Args:
        package: The package's ``__name__``.
        modules: For every public name the module that defines it, relative to the package: ``{"Plan": "plan"}``. A name
            must not be the name of a module of the package: Python would then return the module once it is imported.
    """

    def load(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)

    return load
