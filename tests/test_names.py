"""A class name occurs once in the project, and names say what they hold."""

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("mlflow_finetune_plugin", "gradio_app")
VAGUE = {"found", "told", "said", "seen", "made", "asked", "given", "kept", "wanted", "one", "own", "place"}
"""Words that say how a value came about, or nothing, instead of what it holds."""
LARGEST_SHARES = {PACKAGES: 0.005, ("tests",): 0.01, ("benchmarks",): 0.01, ("recipes",): 0.01}
BINDING = (
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.arg, ast.Name),
    *(ast.Attribute, ast.alias, ast.ExceptHandler),
)
ALLOWED = Path(__file__).with_name("vague_names.txt")
"""How many vague names a file may have while its folders are above their share. The numbers only become smaller."""


@cache
def nodes_by_file(folders: tuple[str, ...]) -> dict[str, list[ast.AST]]:
    """Return the nodes of each file that can bind a name."""
    files = sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))
    return {
        file.relative_to(ROOT).as_posix(): [
            node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, BINDING)
        ]
        for file in files
    }


def bound_names(nodes: list[ast.AST]) -> Iterator[str]:
    """Yield the names of functions, classes, parameters, variables and attributes, once for each time one is bound."""
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name


def test_a_class_name_occurs_once():
    files = defaultdict(list)
    for file, nodes in nodes_by_file(PACKAGES).items():
        for node in nodes:
            if isinstance(node, ast.ClassDef):
                files[node.name].append(f"{file}:{node.lineno}")
    repeated = {name: places for name, places in files.items() if len(places) > 1}
    assert not repeated, f"fix: give all but one of each a name that says more: {repeated}"


@pytest.mark.parametrize("folders", LARGEST_SHARES, ids="+".join)
def test_few_names_are_vague(folders):
    names = {file: list(bound_names(nodes)) for file, nodes in nodes_by_file(folders).items()}
    vague = Counter({file: sum(name.strip("_") in VAGUE for name in bound) for file, bound in names.items()})
    if vague.total() <= LARGEST_SHARES[folders] * sum(map(len, names.values())):
        return
    allowed = {file: int(count) for count, file in map(str.split, ALLOWED.read_text(encoding="ascii").splitlines())}
    excess = {file: (count, allowed.get(file, 0)) for file, count in vague.items() if count > allowed.get(file, 0)}
    assert not excess, f"fix: name what these hold instead of {sorted(VAGUE)}; (vague names, allowed): {excess}"
