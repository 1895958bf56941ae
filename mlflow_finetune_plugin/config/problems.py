"""Problems of a recipe, one line each: where, which key and value, and what is expected or the nearest name."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from mlflow_finetune_plugin.config.sections import DataFileSettings
from mlflow_finetune_plugin.config.yaml_source import Document, KeyPath

_TYPES = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": "nothing"}

_BOUNDS = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}

_LONGEST_SHOWN = 120

ALIASES = {
    "batch_size": "per_device_train_batch_size",
    "epochs": "num_train_epochs",
    "lr": "learning_rate",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lora_rank": "rank",
    "r": "rank",
    "steps": "max_steps",
}
"""Short names that ``-P`` accepts, and the keys that they mean. A recipe uses the full names."""


class Origins:
    """Where each leaf came from, for messages: ``finetune.yaml:7`` or ``-P rank``."""

    def __init__(self, recipe: Path, document: Document) -> None:
        self._recipe = recipe.name
        self._lines = document.lines
        self._overridden: dict[KeyPath, str] = {}

    def override(self, path: KeyPath, name: str) -> None:
        self._overridden[path] = f"-P {name[:_LONGEST_SHOWN]}"

    def is_of_file(self, path: KeyPath) -> bool:
        """Return whether the value comes from the recipe and not from a ``-P``."""
        return path in self._lines and path not in self._overridden

    def of(self, path: KeyPath) -> str:
        for length in range(len(path), 0, -1):
            if path[:length] in self._overridden:
                return self._overridden[path[:length]]
        for length in range(len(path), 0, -1):
            if path[:length] in self._lines:
                return f"{self._recipe}:{self._lines[path[:length]]}"
        return self._recipe


def validated(
    model: type[BaseModel], value: Any, path: KeyPath, origin: Origins, problems: list[str]
) -> BaseModel | None:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        faults: dict[KeyPath, Any] = {}
        for fault in error.errors():
            faults.setdefault(_without_union_tags((*path, *fault["loc"]), model, len(path)), fault)
        for where, fault in faults.items():
            if not any(len(other) > len(where) and other[: len(where)] == where for other in faults):
                problems.append(_fault_line(fault, where, model, origin))
        return None


def valid_part(model: type[BaseModel], value: Any) -> BaseModel | None:
    """Return a section without its faulty keys, so that what its other keys name can be checked; None when that is not
    valid.
    """
    if not isinstance(value, dict):
        return None
    try:
        return model.model_validate(value)
    except ValidationError as error:
        faulty = {problem["loc"][0] for problem in error.errors() if problem["loc"]}
    try:
        return model.model_validate({key: leaf for key, leaf in value.items() if key not in faulty})
    except ValidationError:
        return None


def _without_union_tags(where: KeyPath, model: type[BaseModel], depth: int) -> KeyPath:
    """Return the location without the members of unions that pydantic adds: a reader of YAML knows only keys and
    indices.
    """
    if len(where) > depth and _section_at(model, where[depth : depth + 1]) not in (None, DataFileSettings):
        return where  # a section of a section, which is in no union
    parts: list[str | int] = list(where[: depth + 1])
    for part in where[depth + 1 :]:
        if (
            isinstance(part, int)
            or part in DataFileSettings.model_fields
            or (len(parts) > depth + 1 and isinstance(parts[-1], int))
        ):
            parts.append(part)
    return tuple(parts)


def _section_at(model: type[BaseModel], keys: KeyPath) -> type[BaseModel] | None:
    """Return the section at ``keys`` of a section, or in a list there; None if there is none."""
    for key in keys:
        if isinstance(key, int):
            continue
        info = model.model_fields.get(key)
        kinds = _kinds(info.annotation) if info is not None else []
        if len(kinds) != 1:
            return None
        model = kinds[0]
    return model


def _kinds(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in _kinds(part)]


def _fault_line(fault: Any, where: KeyPath, model: type[BaseModel], origin: Origins) -> str:
    key = ".".join(map(str, where))
    source = origin.of(where)
    if fault["type"] == "extra_forbidden":
        nested = (_section_at(model, where[1:-1]) or DataFileSettings).model_fields
        prefix = ".".join(map(str, where[:-1]))
        return unknown_key(source, key, fault["input"], [f"{prefix}.{name}" for name in nested])
    if fault["type"] == "missing":
        return f"{source}: {key} is missing"
    section, field_name = _section_at(model, where[1:-1]), str(where[-1])
    info = section.model_fields.get(field_name) if section is not None and len(where) > 1 else None
    message = fault["msg"][0].lower() + fault["msg"][1:]
    if fault["type"] == "value_error":
        message = fault["msg"].removeprefix("Value error, ")
    elif len(where) == 1:
        message = f"expected keys such as {', '.join(list(model.model_fields)[:3])}"
    elif fault["type"] == "model_type" and _section_at(model, where[1:]) in (None, DataFileSettings):
        message = f"expected a path or {{{', '.join(DataFileSettings.model_fields)}}}"
    elif section is not None and info is not None:
        message = f"expected {expected(section, field_name)}"
        if not fault["type"].endswith(
            ("_type", "_parsing", "literal_error", "greater_than", "greater_than_equal", "less_than", "less_than_equal")
        ):
            message += f" ({fault['msg'][0].lower() + fault['msg'][1:]})"
    return f"{source}: {key} = {shown(fault['input'])}: {message}"


def unknown_key(source: str, key: str, value: Any, choices: list[str]) -> str:
    leaf = ALIASES.get(key.rpartition(".")[2], "")
    meant = [choice for choice in choices if leaf and choice.rpartition(".")[2] == leaf]
    near = meant or difflib.get_close_matches(key[:_LONGEST_SHOWN], choices, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(choices)}"
    return f"{source[:_LONGEST_SHOWN]}: unknown key {key[:_LONGEST_SHOWN]} (= {shown(value)}); {hint}"


def shown(value: Any) -> str:
    """Return a value for a message: shortened, but long enough to recognise it."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}... ({len(text):,} characters)"


def expected(model: type[BaseModel], key: str) -> str:
    """Return what ``key`` of a section accepts, in words."""
    schema = model.model_json_schema()
    return _words(schema["properties"][key], schema.get("$defs", {}))


def _words(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "$ref" in schema:
        section = definitions[schema["$ref"].rsplit("/", 1)[-1]]
        return "{" + ", ".join(section["properties"]) + "}" if "properties" in section else _words(section, definitions)
    if "anyOf" in schema:
        return " or ".join(_words(part, definitions) for part in schema["anyOf"] if part.get("type") != "null")
    if "const" in schema:
        return _literal(schema["const"])
    if "enum" in schema:
        return ", ".join(_literal(value) for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_words(schema.get('items', {}), definitions)}"
    if schema.get("type") == "object":
        return "mapping"
    bounds = [f"{word} {schema[name]:.10g}" for name, word in _BOUNDS.items() if name in schema]
    return " ".join([_TYPES.get(str(schema.get("type")), "value"), " and ".join(bounds)]).strip()


def _literal(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
