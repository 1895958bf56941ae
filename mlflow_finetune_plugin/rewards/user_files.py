"""The form ``FILE[:FUNCTION]``, and what can be seen of a file without running it."""

from __future__ import annotations

import ast
from pathlib import Path

from mlflow_finetune_plugin.errors import unknown


def split_file(text: str) -> tuple[str, str]:
    """Return the file and the name of ``FILE[:NAME]``; an empty name if there is none."""
    file, colon, name = text.rpartition(":")
    return (file, name) if colon and name.isidentifier() else (text, "")


def names_file(text: str) -> bool:
    """Return whether a text names a Python file, and not something of a package."""
    return split_file(text)[0].endswith(".py")


def file_faults(text: str, folder: Path, *, needs_name: bool = False) -> list[str]:
    """Return what is wrong with ``FILE[:NAME]``: no file, not Python, or no such name in it."""
    file, name = split_file(text)
    path = folder / file
    if not path.is_file():
        return [f"the file {path} does not exist; fix: give its path relative to the recipe"]
    if path.suffix != ".py":
        return [f"{path} is not a Python file; fix: name a .py file"]
    if needs_name and not name:
        return [f"{text!r} names no scorer; fix: use FILE:NAME"]
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError, RecursionError) as error:
        return [f"{path} is not valid Python: {error}; fix: correct it"]
    names = _names(tree)
    if name and names is not None and name not in names:
        return [f"{path}: {unknown('function', name, sorted(names))}"]
    return []


def _names(tree: ast.Module) -> set[str] | None:
    """Return the names that a file binds at any place outside of functions and classes; None if it imports ``*``."""
    names: set[str] = set()
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
            continue
        if isinstance(node, ast.alias):
            if node.name == "*":
                return None
            names.add((node.asname or node.name).partition(".")[0])
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        pending += ast.iter_child_nodes(node)
    return names
