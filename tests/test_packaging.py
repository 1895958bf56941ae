"""The wheel is whole: installed away from the checkout it runs the quickstart's main job."""

from __future__ import annotations

import configparser
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY, make_workplace
from packaging.requirements import Requirement
from packaging.version import Version

from mlflow_finetune_plugin.jobs.versions import tested_sets


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for name in filter(None, tracked):
        if (REPOSITORY / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((REPOSITORY / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.mark.process
def test_wheel_holds_every_package_and_its_data(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    packages = {
        path.parent.relative_to(REPOSITORY).as_posix()
        for root in ("mlflow_finetune_plugin", "gradio_app")
        for path in (REPOSITORY / root).glob("**/*.py")
        if "__pycache__" not in path.parts
    }
    for package in packages:
        assert any(name.startswith(f"{package}/") for name in names), package
    for needed in (
        "mlflow_finetune_plugin/py.typed",
        "gradio_app/pages/static/page.js",
        "gradio_app/pages/static/style.css",
        "mlflow_finetune_plugin/embedded_base/model.safetensors",
        "mlflow_finetune_plugin/evaluation/forgetting.txt",
        "mlflow_finetune_plugin/evaluation/metrics/exact_match.py",
        "mlflow_finetune_plugin/recipes/quickstart/finetune.yaml",
        "mlflow_finetune_plugin/recipes/quickstart/MLproject",
        "mlflow_finetune_plugin/recipes/quickstart/data/train.jsonl",
        "mlflow_finetune_plugin/recipes/structured_extraction/field_f1.py",
        "mlflow_finetune_plugin/recipes/structured_extraction/gpu/finetune.yaml",
        "mlflow_finetune_plugin/recipes/rlhf/chain.py",
        "mlflow_finetune_plugin/recipes/rlhf/preferred.py",
        "mlflow_finetune_plugin/recipes/rlhf/sft/finetune.yaml",
        "mlflow_finetune_plugin/recipes/rlhf/reward/finetune.yaml",
    ):
        assert needed in names


@pytest.mark.process
def test_wheel_has_its_entry_points(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = [entry for entry in archive.namelist() if entry.endswith("entry_points.txt")]
    found = configparser.ConfigParser()
    found.read_string(archive.read(name).decode())
    assert found["mlflow.project_backend"]["finetune"] == "mlflow_finetune_plugin.backend:FinetuneBackend"
    assert found["console_scripts"]["mlflow-finetune"] == "mlflow_finetune_plugin.cli:main"


def test_version_is_told_once_and_alike():
    import mlflow_finetune_plugin

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["version"] == mlflow_finetune_plugin.__version__


def requirements() -> dict[str, Requirement]:
    """Return the bounds of what the package and its extras for users require."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["train"], *extras["playground"]]
    return {requirement.name: requirement for requirement in map(Requirement, lines)}


@pytest.mark.parametrize("name", ["mlflow", "transformers", "peft", "trl", "gradio"])
def test_new_releases_are_allowed_up_to_the_next_major_version(name):
    upper = [Version(bound.version) for bound in requirements()[name].specifier if bound.operator == "<"]
    newest = Version(tested_sets()["newest"][name])
    assert upper == [Version(str(newest.major + 1))]


@pytest.mark.parametrize("packages", tested_sets().values(), ids=tested_sets())
def test_versions_that_were_tested_together_are_allowed(packages):
    bounds = requirements()
    refused = {
        name: version for name, version in packages.items() if name in bounds and version not in bounds[name].specifier
    }
    assert not refused


def test_the_contract_tests_of_the_makefile_exist():
    lines = (REPOSITORY / "Makefile").read_text().replace("\\\n", " ").splitlines()
    (paths,) = [line.partition("?=")[2].split() for line in lines if line.startswith("CONTRACT ?=")]
    assert paths
    assert all((REPOSITORY / path).exists() for path in paths)


@pytest.mark.process
def test_installed_wheel_runs_the_quickstart_outside_the_checkout(wheel, tmp_path, empty_store):
    site = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(install, check=True)
    place = make_workplace(tmp_path, f"sqlite:///{tmp_path / 'mlflow.db'}")
    place.environment["PYTHONPATH"] = str(site)
    where = place.run(["site"], PYTHONPATH=str(site))  # a first look that the folder is on the path
    assert str(site) in where.stdout
    made = place.run(["mlflow_finetune_plugin.cli", "init", "my-bot"])
    assert made.returncode == 0, made.stdout
    code = "import mlflow_finetune_plugin as m; print(m.__file__)"
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=place.environment, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip().startswith(str(site))
    result = place.mlflow_run("my-bot", "-e", "lora", "-P", "max_steps=60", "-P", "max_rows=40")
    assert result.returncode == 0, result.stdout
    version = place.client().get_model_version_by_alias("my-bot", "challenger")
    run = place.client().get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["eval/adapter/exact_match"] > run.data.metrics["eval/base/exact_match"]
