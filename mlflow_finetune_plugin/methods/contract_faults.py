"""What is missing or wrong in a module of another package that offers itself as a method."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from mlflow_finetune_plugin.methods.contract import (
    Adaptation,
    AdaptationModule,
    Kind,
    ModelKind,
    Objective,
    ObjectiveModule,
    Quantization,
    RowForm,
    TrainedDtype,
)
from mlflow_finetune_plugin.section import Section


def contract_faults(kind: Kind, module: object) -> Iterator[str]:
    """Yield a line for every member of the module that is missing or does not fit the contract."""
    if not isinstance(module, ModuleType):
        yield f"it is an instance of {type(module).__name__}, not a module"
        return
    required = members(AdaptationModule if kind == "adaptation" else ObjectiveModule)
    missing = [name for name in required if not hasattr(module, name)]
    if missing:
        yield f"missing: {', '.join(missing)}"
    contract = Adaptation if kind == "adaptation" else Objective
    optional = [name for name in members(contract) if name not in required]
    for name in [*required, *optional]:
        if not hasattr(module, name):
            continue
        value, member = getattr(module, name), getattr(contract, name)
        fault = _ATTRIBUTE_FAULTS[name](value) if name in _ATTRIBUTE_FAULTS else _signature_fault(value, member)
        if fault:
            yield f"{name} {fault}"


def members(contract: type) -> list[str]:
    """Return the public names that a protocol and its bases declare, in their order."""
    return [name for base in reversed(contract.__mro__[:-1]) for name in vars(base) if not name.startswith("_")]


def _options_fault(value: Any) -> str | None:
    if isinstance(value, type) and issubclass(value, Section):
        return None
    return f"is {value!r}, not a subclass of mlflow_finetune_plugin.section.Section"


def _quantization_fault(value: Any) -> str | None:
    return None if value in ("nf4", "int8", None) else f"is {value!r}, not 'nf4', 'int8' or None"


def _quantizations_fault(value: Any) -> str | None:
    return _names_fault(value, get_args(Quantization))


def _dtypes_fault(value: Any) -> str | None:
    return _names_fault(value, get_args(TrainedDtype))


def _names_fault(value: Any, known: tuple[str, ...]) -> str | None:
    is_tuple = isinstance(value, tuple) and set(value) <= set(known)
    return None if is_tuple else f"is {value!r}, not a tuple of: {', '.join(known)}"


def _model_code_fault(value: Any) -> str | None:
    if isinstance(value, tuple) and all(isinstance(file, Path) and file.is_file() for file in value):
        return None
    return f"is {value!r}, not a tuple of paths of existing files"


def _rows_fault(value: Any) -> str | None:
    forms = get_args(RowForm)
    return None if value in forms else f"is {value!r}; fix: pick one of: {', '.join(forms)}"


def _logs_fault(value: Any) -> str | None:
    is_names = isinstance(value, tuple) and all(isinstance(name, str) for name in value)
    return None if is_names else f"is {value!r}, not a tuple of names"


def _model_fault(value: Any) -> str | None:
    kinds = get_args(ModelKind)
    return None if value in kinds else f"is {value!r}; fix: pick one of: {', '.join(kinds)}"


def _sees_fault(value: Any) -> str | None:
    return None if isinstance(value, bool) else f"is {value!r}, not True or False"


_ATTRIBUTE_FAULTS: dict[str, Callable[[Any], str | None]] = {
    "Options": _options_fault,
    "QUANTIZATION": _quantization_fault,
    "QUANTIZATIONS": _quantizations_fault,
    "DTYPES": _dtypes_fault,
    "SEES": _sees_fault,
    "MODEL_CODE": _model_code_fault,
    "ROWS": _rows_fault,
    "LOGS": _logs_fault,
    "MODEL": _model_fault,
}


def _signature_fault(function: Any, contract: Callable[..., Any]) -> str | None:
    """Return why the function cannot be called like the contract's method, or None."""
    if not callable(function):
        return f"is {function!r}, not a function"
    parameters = list(inspect.signature(contract).parameters.values())[1:]  # without self
    keywords = {parameter.name: None for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    try:
        inspect.signature(function).bind(*[None] * (len(parameters) - len(keywords)), **keywords)
    except TypeError:
        positional = [parameter.name for parameter in parameters if parameter.name not in keywords]
        expected = ", ".join([*positional, *(["*", *keywords] if keywords else [])])
        return f"must accept ({expected}), but it is {inspect.signature(function)}"
    return None
