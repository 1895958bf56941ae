"""Where a version's base is found, and what is said of folders that hold another."""

import json
import logging
import shutil

import pytest

from mlflow_finetune_plugin.errors import ServingError
from mlflow_finetune_plugin.serving.versions.adapter_store import AdapterStore
from mlflow_finetune_plugin.serving.versions.bases import Bases
from mlflow_finetune_plugin.serving.versions.fetching import Fetcher


@pytest.fixture
def version(registry, tmp_path):
    return Fetcher(registry.client, AdapterStore(tmp_path / "store")).fetch("bot", "1")


@pytest.fixture
def other(version, tmp_path):
    folder = shutil.copytree(version.base["folder"], tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 12345.0}))
    return folder


def test_a_moved_base_is_found_by_what_it_holds(version, other, tmp_path, caplog):
    moved = shutil.copytree(version.base["folder"], tmp_path / "moved")
    assert Bases((other, moved)).find(version) == moved
    assert not caplog.records, "the other may be another model's"


def test_a_folder_that_holds_another_base_is_passed_over_and_told(version, other, caplog):
    with caplog.at_level(logging.WARNING):
        assert str(Bases((other,)).find(version)) == version.base["folder"]
    assert f"base_model_skipped version=bot/1 expected={version.base['digest'][:12]} {other}" in caplog.text


def test_a_base_that_is_nowhere_is_told_with_what_was_seen(version, other):
    gone = str(other.parent / "gone")
    version.card["base_model"] = {**version.base, "folder": gone, "name": gone}
    with pytest.raises(
        ServingError, match=r"is not on this machine; other bases: .*other \([0-9a-f]{12}\); fix: --base-model"
    ):
        Bases((other,)).find(version)
