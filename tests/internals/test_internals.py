"""Private names of other libraries are used in one module for each library, and a version without one of them ends in one error."""

from __future__ import annotations

import ast
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY

from mlflow_finetune_plugin.errors import LibraryVersionError
from mlflow_finetune_plugin.internals import check_names, mlflow, required

LIBRARIES = {"gradio", "mlflow", "peft", "transformers", "trl", "vllm"}
INTERNALS = {"mlflow_finetune_plugin/internals", "gradio_app/web/gradio_internals.py"}
OF_OTHERS = {
    "_exit": "os",
    "_parser": "re",
    "_replace": "namedtuple",
    "_buffers": "torch",
    "_cdata": "torch",
    "_grouped_mm": "torch",
    "_overloadpacket": "torch",
    "_parameters": "torch",
    "_scaled_dot_product_flash_attention_for_cpu": "torch",
    "_scaled_dot_product_flash_attention_for_cpu_backward": "torch",
    "_schema": "torch",
    "_extract_corpus_statistics": "sacrebleu",
}
"""Private attributes of what is not in LIBRARIES."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            library, *inner = name.split(".")
            if library in LIBRARIES and any(map(is_private, inner)):
                yield name


def private_attributes(tree: ast.Module) -> Iterator[str]:
    """Return the private attributes of objects other than ``self``, also those that ``getattr`` and the like name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner, name = node.value, node.attr
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in {"getattr", "setattr", "hasattr", "delattr"}
            and isinstance(node.args[1], ast.Constant)
        ):
            owner, name = node.args[0], str(node.args[1].value)
        else:
            continue
        if is_private(name) and ast.unparse(owner) not in {"self", "cls", "super()"} and name not in OF_OTHERS:
            yield f"{ast.unparse(owner)}.{name}"


def modules() -> list[Path]:
    return sorted(
        file
        for package in ("mlflow_finetune_plugin", "gradio_app", "recipes", "benchmarks")
        for file in (REPOSITORY / package).rglob("*.py")
    )


def is_for_internals(file: Path) -> bool:
    name = file.relative_to(REPOSITORY)
    return name.as_posix() in INTERNALS or name.parent.as_posix() in INTERNALS


@pytest.mark.parametrize("names", [private_imports, private_attributes])
def test_private_names_of_libraries_are_used_in_their_modules_alone(names):
    outside, inside = [], []
    for file in modules():
        uses = inside if is_for_internals(file) else outside
        tree = ast.parse(file.read_text(encoding="utf-8"))
        uses += [f"{file.relative_to(REPOSITORY)}: {name}" for name in names(tree)]
    assert not outside, "fix: move the use into mlflow_finetune_plugin/internals, or name its owner in OF_OTHERS"
    assert inside or names is private_imports


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("from mlflow.tracking.fluent import _get_experiment_id", ["mlflow.tracking.fluent._get_experiment_id"]),
        ("from mlflow.projects import _project_spec", ["mlflow.projects._project_spec"]),
        ("import transformers._typing", ["transformers._typing"]),
        ("from mlflow_finetune_plugin.adaptations import _blocks", []),
    ],
)
def test_private_imports_are_recognised(code, names):
    assert list(private_imports(ast.parse(code))) == names


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("x.config._attn_implementation", ["x.config._attn_implementation"]),
        ("getattr(kind, '_supports_sdpa', True)", ["kind._supports_sdpa"]),
        ("self._own + os._exit(0)", []),
    ],
)
def test_private_attributes_are_recognised(code, names):
    assert list(private_attributes(ast.parse(code))) == names


@pytest.mark.parametrize(
    ("module", "name", "path"),
    [
        ("mlflow.tracking.fluent", "_gone", "mlflow.tracking.fluent._gone"),
        ("mlflow.gone.inside", "_get_user", "mlflow.gone.inside._get_user"),
    ],
)
def test_a_version_without_a_name_is_named_in_the_error(module, name, path):
    with pytest.raises(LibraryVersionError) as error:
        required(module, name)
    version = importlib.metadata.version("mlflow")
    assert str(error.value).startswith(f"mlflow {version} has no {path}, which mlflow-finetune needs; fix: install")


def test_an_object_without_its_attributes_is_named_in_the_error():
    check_names("mlflow", Path, ("exists", "is_dir"))
    with pytest.raises(LibraryVersionError, match=r"^mlflow \S+ has no Path\._gone, Path\._away, which"):
        check_names("mlflow", Path, ("exists", "_gone", "_away"))


def test_a_library_that_is_not_installed_is_not_blamed_on_its_version():
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        required("no_such_library.inside", "name")


def test_mlflow_has_what_this_package_needs(monkeypatch):
    monkeypatch.setenv("LOGNAME", "ann")
    assert mlflow.user_name() == "ann"
    assert mlflow.experiment_id().isdigit()
    assert not mlflow.is_experiment_set()
    parts = mlflow.model_uri_parts("models:/my-bot@champion")
    assert (parts.name, parts.version, parts.alias, parts.model_id) == ("my-bot", None, "champion", None)
    mlflow.check_param_name("learning_rate")


@pytest.mark.train
def test_transformers_trl_and_peft_have_what_this_package_needs():
    from transformers import GPT2LMHeadModel

    from mlflow_finetune_plugin.internals import peft, transformers, trl

    transformers.check_trainer()
    peft.check_tuners()
    assert transformers.supports_sdpa(GPT2LMHeadModel)
    assert callable(trl.add_fused_lm_head)
