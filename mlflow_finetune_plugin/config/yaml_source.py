"""Read YAML with the line of each key, and with YAML 1.2 numbers and booleans.

PyYAML follows YAML 1.1, where ``1e-4`` is text and ``no`` is False. A recipe should mean what its reader expects, so
numbers follow the YAML 1.2 core schema, only true and false are booleans, nothing is a date, and a repeated key is an
error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mlflow_finetune_plugin.errors import ConfigError

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """A parsed recipe: plain values and, for every key path, its line number (from 1)."""

    values: dict[str, Any]
    lines: dict[KeyPath, int] = field(repr=False)


class _Loader(yaml.SafeLoader):
    pass


_LEFT_OUT = {f"tag:yaml.org,2002:{name}" for name in ("float", "bool", "int", "timestamp")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag not in _LEFT_OUT]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(  # before the floats, which would fit too
    "tag:yaml.org,2002:int", re.compile(r"^([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def _whole_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    """Read 010 as ten; PyYAML reads it as octal."""
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)  # ValueError: "!!int x"; RecursionError: a thousand brackets
_MOST_VALUES = 100_000
_DEEPEST = 100
_LONGEST_VALUE = 20_000  # PyYAML's time and depth grow with the text, and a value on a command line is short


def parse_value(text: str) -> Any:
    """Return the value of one ``-P name=text``. Text that is not valid YAML, for example with an unbalanced bracket,
    stays text.
    """
    if len(text) > _LONGEST_VALUE:
        return text
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=_Loader)):
            return text  # a value that refers to itself has no end
        return yaml.load(text, Loader=_Loader)
    except _NOT_YAML:
        return text


def load_document(path: Path) -> Document:
    """Read a recipe file. Raises ConfigError for a file that is not a UTF-8 YAML mapping with unique keys."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            [f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); fix: save it as UTF-8"]
        ) from error
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}; fix: give a readable YAML file"]) from error
    try:
        root = yaml.compose(text, Loader=_Loader)
        _check_size(root, path)
        values = yaml.load(text, Loader=_Loader)
    except _NOT_YAML as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError([f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}"]) from error
    if root is None or values is None:
        return Document({}, {})
    if not isinstance(values, dict):
        raise ConfigError([f"{path}: expected keys such as base_model and data, found {type(values).__name__}"])
    lines: dict[KeyPath, int] = {}
    repeated: list[str] = []
    _walk(root, (), lines, repeated)
    if repeated:
        raise ConfigError([f"{path}:{entry}: the key occurs twice; fix: keep one" for entry in repeated])
    return Document(values, lines)


def _check_size(root: yaml.Node | None, path: Path) -> None:
    """Raise ConfigError for a file that is too large once its anchors are written out, before anything is built of it.

    Nine lines of anchors that each hold nine of the line before are 400 million values, which would take minutes to read.
    """
    known: dict[int, tuple[int, int] | None] = {}

    def measure(node: yaml.Node) -> tuple[int, int]:
        """Return the number of values and of levels; an anchor is measured once."""
        if id(node) in known:
            measured = known[id(node)]
            if measured is None:
                raise ConfigError([f"{path}: an anchor (&name) holds itself; fix: write the value out"])
            return measured
        known[id(node)] = None
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        parts = [measure(child) for child in children]
        known[id(node)] = whole = (1 + sum(part[0] for part in parts), 1 + max((part[1] for part in parts), default=0))
        return whole

    values, levels = measure(root) if root is not None else (0, 0)
    if values > _MOST_VALUES:
        raise ConfigError(
            [f"{path}: {values:,} values with its anchors written out, at most {_MOST_VALUES:,}; fix: write less"]
        )
    if levels > _DEEPEST:
        raise ConfigError([f"{path}: values are nested {levels} deep, at most {_DEEPEST}; fix: write fewer levels"])


def _walk(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], repeated: list[str]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, key.value)
            if here in lines:
                repeated.append(f"{key.start_mark.line + 1}: {'.'.join(map(str, here))}")
            lines[here] = key.start_mark.line + 1
            _walk(value, here, lines, repeated)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*path, index)] = value.start_mark.line + 1
            _walk(value, (*path, index), lines, repeated)
