"""Every room says what it promises and offers a public face, and no folder is too large to survey. The rooms are read, not
imported, because some need torch or Gradio."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("mlflow_finetune_plugin", "gradio_app")
DATA_FOLDERS = {"embedded_base", "embedded_vision_base", "recipes"}
MODULES_IN_A_ROOM = 15
MODULES_IN_THE_ROOT = 10
ROOMS = sorted(
    init.parent.relative_to(ROOT).as_posix()
    for package in PACKAGES
    for init in (ROOT / package).rglob("__init__.py")
    if not DATA_FOLDERS & set(init.parts)
)


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def modules_in(room: str) -> set[str]:
    return {file.stem for file in (ROOT / room).glob("*.py")} - {"__init__"}


def face_of(tree: ast.Module) -> list[str]:
    """Return the names in ``__all__``."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def origins_of(tree: ast.Module) -> dict[str, str]:
    """Return for every name that a room imports, also for the type checker alone, the module that defines it."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module or "" for node in imports for alias in node.names}


def lazy_modules(tree: ast.Module, room: str) -> dict[str, str]:
    """Return the table that a room gives to ``names_on_first_use``, with whole module names."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    tables = [call.args[1] for call in calls if ast.unparse(call.func) == "names_on_first_use"]
    package = room.replace("/", ".")
    return {name: f"{package}.{module}" for table in tables for name, module in ast.literal_eval(table).items()}


def defines(module: str, name: str) -> bool:
    path = ROOT / module.replace(".", "/")
    tree = tree_of(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))
    assigned = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    assigned += [node.target for node in tree.body if isinstance(node, ast.AnnAssign)]
    named = {node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))}
    return name in named | {ast.unparse(target) for target in assigned} | set(origins_of(tree))


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_a_docstring_and_a_public_face(room):
    tree = tree_of(ROOT / room / "__init__.py")
    assert ast.get_docstring(tree), f"{room}/__init__.py: fix: say in a docstring what the room promises"
    if room != "mlflow_finetune_plugin":  # it offers the names of mlflow_finetune_plugin.api
        assert face_of(tree), f"{room}/__init__.py: fix: list the names that other rooms may use in __all__"


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_can_be_imported(room):
    tree = tree_of(ROOT / room / "__init__.py")
    origins, lazy, modules = origins_of(tree), lazy_modules(tree, room), modules_in(room)
    if lazy:
        assert lazy == {name: origins[name] for name in face_of(tree)}, "the type checker sees other names than Python"
    for name in face_of(tree):
        if name in modules:  # Python returns the module as soon as anything has imported it
            assert name not in lazy, f"{room}: {name} is a module and another value; fix: rename one"
        elif name in origins:
            assert defines(origins[name], name), f"{room}: {origins[name]} does not define {name}"
        else:
            assert defines(room.replace("/", "."), name), f"{room}: __all__ lists {name}, which the room does not have"


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_has_too_many_modules(room):
    limit = MODULES_IN_THE_ROOT if room in PACKAGES else MODULES_IN_A_ROOM
    assert len(modules_in(room)) <= min(limit, 18), f"{room}: fix: group the modules that belong together"


def test_a_room_imports_a_name_on_first_use_and_knows_no_others():
    from mlflow_finetune_plugin import gate

    assert gate.GatePolicy.__module__ == "mlflow_finetune_plugin.gate.policy"
    with pytest.raises(AttributeError, match=r"'mlflow_finetune_plugin\.gate' has no attribute 'juge'"):
        _ = gate.juge
