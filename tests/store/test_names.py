"""The names that this package writes to MLflow are declared once."""

import ast
from collections import Counter
from pathlib import Path

import gradio_app
import mlflow_finetune_plugin
from mlflow_finetune_plugin.store import names
from mlflow_finetune_plugin.store.names import NAMES

PACKAGES = [Path(package.__file__).parent for package in (mlflow_finetune_plugin, gradio_app)]
FILES_OF_A_PROJECT = {"finetune.yaml", "finetune.yml", "finetune.json"}


def test_every_name_is_declared_once_and_described():
    counts = Counter((name.kind, name.text) for name in NAMES)
    assert [name for name, count in counts.items() if count > 1] == []
    assert all((name.description.endswith(".") and name.owners) or name.kind == "model id" for name in NAMES)


def test_every_constant_is_in_the_reference():
    constants = {value for key, value in vars(names).items() if key.isupper() and isinstance(value, str)}
    assert constants == {name.text.split("<")[0] for name in NAMES}


def test_no_other_module_spells_a_finetune_name_out():
    spelled = [
        f"{path.name}:{node.lineno} {node.value}"
        for package in PACKAGES
        for path in package.rglob("*.py")
        if path.name != "names.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.startswith("finetune.")
        and " " not in node.value
        and node.value not in FILES_OF_A_PROJECT
    ]
    assert spelled == []
