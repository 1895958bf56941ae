"""Names inside a library: each is there, or one error says which version of the library lacks it."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterable
from typing import Any

from mlflow_finetune_plugin.errors import LibraryVersionError


def required(module: str, name: str) -> Any:
    """Return ``name`` of a module inside a library, such as ``required("mlflow.tracking.fluent", "_get_experiment_id")``.

    Raises:
        LibraryVersionError: The installed version of the library has no such module or name.
    """
    library = module.partition(".")[0]
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if not module.startswith(str(error.name)) or error.name == library:
            raise  # not this library's change: it, or a package that it needs, is not installed
        raise _missing(library, f"{module}.{name}") from error
    except AttributeError as error:
        raise _missing(library, f"{module}.{name}") from error


def check_names(library: str, owner: object, names: Iterable[str]) -> None:
    """Check that a class or an object of a library has attributes that this package reads or overrides.

    Raises:
        LibraryVersionError: One is missing. An override of it would never be called.
    """
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        kind = owner if isinstance(owner, type) else type(owner)
        raise _missing(library, ", ".join(f"{kind.__name__}.{name}" for name in missing))


def _missing(library: str, names: str) -> LibraryVersionError:
    return LibraryVersionError(
        f"{library} {importlib.metadata.version(library)} has no {names}, which mlflow-finetune needs; "
        f"fix: install a version of {library} that mlflow-finetune doctor calls tested"
    )
