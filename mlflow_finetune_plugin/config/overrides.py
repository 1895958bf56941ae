"""Apply ``-P`` overrides: find the key that a name means, and the folder in which its paths start.

An override names a key alone if only one section has it (``rank``, ``learning_rate``), or with its section
(``training.learning_rate``). ``base_model``, ``data``, ``eval_data``, ``register`` and ``reward`` are short for
``base_model.name``, ``data.train``, ``data.eval``, ``register.name`` and ``options.rewards``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.config.problems import ALIASES, Origins, shown, unknown_key
from mlflow_finetune_plugin.config.yaml_source import KeyPath, parse_value
from mlflow_finetune_plugin.data.sources.locations import is_remote
from mlflow_finetune_plugin.section import EMBEDDED, EMBEDDED_VISION, Section

SHORTHANDS: dict[str, KeyPath] = {
    "base_model": ("base_model", "name"),
    "data": ("data", "train"),
    "eval_data": ("data", "eval"),
    "register": ("register", "name"),
    "reward": ("options", "rewards"),
}
"""Names of ``-P`` that set the key that a person means by them."""
_MAPPINGS: tuple[KeyPath, ...] = (("data", "columns"),)
TOP_LEVEL = (
    "adaptation",
    "objective",
    "resume",
    "start_from",
    "model",
    "version",
    "to",
    "accept_new_policy",
    "endpoint",
    "trust_code",
)
"""Keys of ``-P`` that belong to no section."""


@dataclass(frozen=True)
class Where:
    """The folder in which the relative paths of ``-P`` start: the caller's, unless ``folders`` has another one for an
    override.
    """

    caller: Path
    folders: dict[str, Path]


def parse_overrides(overrides: Mapping[str, str]) -> list[tuple[KeyPath, Any]]:
    """Return (key path, value) of each override. A name without a section stays one element; it is resolved later."""
    return [(path_of(name), parse_value(text)) for name, text in overrides.items()]


def path_of(name: str) -> KeyPath:
    return SHORTHANDS.get(name, tuple(name.split(".")))


def apply_top_level(
    values: dict[str, Any],
    assignments: list[tuple[KeyPath, Any]],
    known: tuple[str, ...],
    overrides: Mapping[str, str],
    origin: Origins,
    problems: list[str],
) -> None:
    """Set the keys of ``-P`` that belong to no section. A key that the entry point does not have is a problem."""
    for (path, value), name in zip(assignments, overrides, strict=True):
        if len(path) != 1 or path[0] not in TOP_LEVEL:
            continue
        if path[0] not in known:
            problems.append(f"-P {name} = {shown(value)}: is not for this entry point; fix: leave it out")
        values[str(path[0])] = overrides[name]  # a run id of digits is not a number
        origin.override(path, name)


def apply_overrides(
    values: dict[str, Any],
    assignments: list[tuple[KeyPath, Any]],
    overrides: Mapping[str, str],
    leaves: Mapping[str, list[KeyPath]],
    sections: Mapping[str, type[Section]],
    where: Where,
    origin: Origins,
    problems: list[str],
) -> None:
    setters: dict[KeyPath, str] = {}
    for (path, value), name in zip(assignments, overrides, strict=True):
        if len(path) == 1 and path[0] in TOP_LEVEL:
            continue
        key_path = _leaf(path, name, value, leaves, problems)
        if key_path is None:
            continue
        if key_path in setters:
            problems.append(
                f"-P {name}: sets {'.'.join(map(str, key_path))}, as does -P {setters[key_path]}; fix: give one"
            )
            continue
        setters[key_path] = name
        section = values.setdefault(str(key_path[0]), {})
        if not isinstance(section, dict):
            problems.append(
                f"-P {name}: section {key_path[0]} is not a mapping, so its leaf {key_path[1]} cannot be set"
            )
            continue
        # YAML reads a revision 7e12 as a number, and a model called 2024, too.
        if _is_text(key_path, sections) and isinstance(value, (bool, int, float)):
            value = overrides[name]
        if len(key_path) == 3:
            before = section.get(str(key_path[1]))
            value = {**(before if isinstance(before, dict) else {}), str(key_path[2]): value}
        values[str(key_path[0])] = {
            **section,
            str(key_path[1]): _caller_paths(key_path[:2], value, where.folders.get(name, where.caller)),
        }
        origin.override(key_path, name)


def _is_text(key_path: KeyPath, sections: Mapping[str, type[Section]]) -> bool:
    model = sections.get(str(key_path[0]))
    return model is not None and model.model_fields[str(key_path[1])].annotation in (str, str | None)


def leaves_of(sections: Mapping[str, type[Section]], option_fields: Mapping[str, str]) -> dict[str, list[KeyPath]]:
    leaves: dict[str, list[KeyPath]] = {}
    for section, model in sections.items():
        for name in model.model_fields:
            leaves.setdefault(name, []).append((section, name))
    for name in option_fields:
        leaves.setdefault(name, []).append(("options", name))
    return leaves


def _leaf(
    path: KeyPath, name: str, value: Any, leaves: Mapping[str, list[KeyPath]], problems: list[str]
) -> KeyPath | None:
    known = [leaf for places in leaves.values() for leaf in places]
    if len(path) == 1 and str(path[0]) not in leaves and ALIASES.get(str(path[0])) in leaves:
        path = (ALIASES[str(path[0])],)
    if len(path) == 2 and path in known:
        return path
    if path[:-1] in _MAPPINGS and path[:-1] in known:  # one part of a leaf that is a mapping
        return path
    if len(path) == 1 and len(leaves.get(str(path[0]), [])) == 1:
        return leaves[str(path[0])][0]
    if len(path) == 1 and str(path[0]) in leaves:
        choices = ", ".join(".".join(map(str, leaf)) for leaf in leaves[str(path[0])])
        problems.append(f"-P {name} = {shown(value)}: several sections have this name; fix: write one of {choices}")
        return None
    dotted = [".".join(map(str, leaf)) for places in leaves.values() for leaf in places]
    choices_ = [*SHORTHANDS, *TOP_LEVEL, *leaves] if len(path) == 1 else dotted
    problems.append(unknown_key(f"-P {name}", name, value, choices_))
    return None


def _caller_paths(key_path: KeyPath, value: Any, caller: Path) -> Any:
    """Make relative paths on ``-P`` absolute; they start in the caller's folder."""
    if key_path in (("data", "train"), ("data", "eval")):
        return _map_paths(value, caller)
    if key_path in (("eval", "forgetting"), ("data", "chat_template")) and isinstance(value, str):
        return path_from(caller, value)
    if key_path == ("eval", "metrics"):
        metrics = (
            value
            if isinstance(value, list)
            else [part.strip() for part in str(value).split(",")]
            if value != "auto"
            else value
        )
        return (
            [path_from(caller, m) if str(m).endswith(".py") else m for m in metrics]
            if isinstance(metrics, list)
            else metrics
        )
    if key_path == ("options", "rewards"):
        return [_reward_file(caller, part) for part in (value if isinstance(value, list) else [value])]
    if key_path == ("base_model", "name") and isinstance(value, str):
        return base_from(caller, value)
    return value


def _map_paths(value: Any, folder: Path) -> Any:
    if isinstance(value, str):
        return path_from(folder, value)
    if isinstance(value, list):
        return [_map_paths(item, folder) for item in value]
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        return {**value, "path": path_from(folder, value["path"])}
    return value


def _reward_file(folder: Path, part: Any) -> Any:
    return path_from(folder, part) if isinstance(part, str) else part


def path_from(folder: Path, path: str) -> str:
    """Return the path with relative paths starting in ``folder``. URLs and names of artifacts stay as they are."""
    return path if "://" in path or is_remote(path) else str(folder / os.path.expanduser(path))


def start_from(folder: Path, name: str) -> str:
    """Return the reference of a start version, with the relative path of a logged model's folder starting in ``folder``.

    A name of the registry or of a run stays as it is.
    """
    if name.startswith(("models:/", "runs:/")):
        return name
    path = os.path.join(folder, os.path.expanduser(name))
    return os.path.realpath(path) if name.startswith((".", "~")) or os.path.isdir(path) else name


def base_from(folder: Path, name: str) -> str:
    """Return the folder of a base model with relative paths starting in ``folder``. A hub name stays as it is."""
    path = os.path.join(folder, os.path.expanduser(name))
    is_folder = name not in (EMBEDDED, EMBEDDED_VISION) and (name.startswith((".", "~")) or os.path.isdir(path))
    return os.path.realpath(path) if is_folder else name
