"""What a leaf may hold, in words: ``integer above 0 or auto``. Read from the JSON Schema that pydantic makes of it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

_TYPES = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": "nothing"}
_BOUNDS = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}


def expected(model: type[BaseModel], key: str) -> str:
    """What may stand at ``key`` of a section."""
    schema = model.model_json_schema()
    return _words(schema["properties"][key], schema.get("$defs", {}))


def _words(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return "{" + ", ".join(definitions[name]["properties"]) + "}"
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
