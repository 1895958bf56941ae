"""The page on the Python API: functions, what they return, and the fields of those objects."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import mlflow_finetune_plugin as ft
from mlflow_finetune_plugin import api
from reference_pages.markdown import code, docstring, page, table

_INTRODUCTION = """
```python
import mlflow_finetune_plugin as ft

result = ft.run("recipes/quickstart", "lora", {"learning_rate": 2e-4})
print(result.model_uri, result.metrics["eval/gain/exact_match"])
```

Every function prints no result, returns an object, and raises a [`FinetuneError`](errors.md) whose message names the fix. The
import is light: torch, transformers and the serving stack are imported by the call that needs them. MLflow's tracking URI
applies as usual.
"""
_FURTHER = "These objects are fields of the results above, or are returned by `ft.submit`. They are imported from their modules."
_FURTHER_OBJECTS = (
    ("mlflow_finetune_plugin.backend", "FinetuneRun"),
    ("mlflow_finetune_plugin.data.report", "DataReport"),
    ("mlflow_finetune_plugin.planning.forecast", "Forecast"),
    ("mlflow_finetune_plugin.votes.checks", "Summary"),
)
_LONGEST_LINE = 100


def render() -> str:
    """Return the page."""
    functions = [name for name in api.__all__ if not isinstance(getattr(ft, name), type)]
    classes = [name for name in api.__all__ if isinstance(getattr(ft, name), type)]
    parts = ["## Functions"]
    for name in functions:
        parts += _function(f"ft.{name}", getattr(ft, name), level=3)
    parts.append("## Results")
    for name in classes:
        parts += _class(f"ft.{name}", getattr(ft, name))
    parts += ["## Further objects", _FURTHER]
    for module, name in _FURTHER_OBJECTS:
        parts += _class(f"{module}.{name}", getattr(importlib.import_module(module), name))
    return page("Python API", _INTRODUCTION, *parts)


def _function(name: str, function: Any, level: int) -> Iterator[str]:
    yield f"{'#' * level} `{name}`"
    yield f"```python\n{_signature(name, function)}\n```"
    yield _documented(function)


def _class(name: str, described: type) -> Iterator[str]:
    yield f"### `{name}`"
    yield _documented(described)
    if dataclasses.is_dataclass(described):
        fields = [(code(field.name), code(str(field.type))) for field in dataclasses.fields(described)]
        yield table(("field", "type"), fields)
    members = [(member, value) for member, value in vars(described).items() if not member.startswith("_")]
    properties = [
        (code(member), code(str(value.fget.__annotations__.get("return", ""))), _first_paragraph(value))
        for member, value in members
        if isinstance(value, property)
    ]
    if properties:
        yield table(("property", "type", "meaning"), properties)
    methods = [
        (code(_signature(member, value)), _first_paragraph(value))
        for member, value in members
        if isinstance(value, FunctionType)
    ]
    if methods:
        yield table(("method", "meaning"), methods)


def _documented(documented: Any) -> str:
    parts = [f"**{name}**\n\n{text}" if name else text for name, text in docstring(documented)]
    return "\n\n".join(parts)


def _first_paragraph(documented: Any) -> str:
    return next(docstring(documented))[1].split("\n\n")[0]


def _signature(name: str, function: Any) -> str:
    """Return a call with its parameters and types, over several lines where one would be long."""
    signature = inspect.signature(function)
    parameters = [parameter for parameter in signature.parameters.values() if parameter.name != "self"]
    returns = "" if signature.return_annotation is inspect.Signature.empty else f" -> {signature.return_annotation}"
    texts: list[str] = []
    for parameter in parameters:
        is_first_keyword = parameter.kind is parameter.KEYWORD_ONLY and "*" not in texts
        has_variadic = any(other.kind is other.VAR_POSITIONAL for other in parameters)
        if is_first_keyword and not has_variadic:
            texts.append("*")
        texts.append(_parameter(parameter))
    short = f"{name}({', '.join(texts)}){returns}"
    if len(short) <= _LONGEST_LINE or "." not in name:
        return short
    return "\n".join([f"{name}(", *(f"    {text}," for text in texts), f"){returns}"])


def _parameter(parameter: inspect.Parameter) -> str:
    """Return a parameter as it is written in a signature; a default that has no short form is left as ``...``."""
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = f"{stars}{parameter.name}: {parameter.annotation}"
    if parameter.default is parameter.empty:
        return text
    if callable(parameter.default):
        return f"{text} = ..."
    is_text = isinstance(parameter.default, str)
    return f"{text} = {json.dumps(parameter.default) if is_text else repr(parameter.default)}"
