"""Names of data elsewhere, and artifacts fetched from a real MLflow store."""

import json
import shutil

import mlflow
import pytest

from mlflow_finetune_plugin.data import DataFile, DataRequest, prepare
from mlflow_finetune_plugin.data.sources.locations import (
    HubDataset,
    check_location,
    hub_dataset,
    is_remote,
    local_copy,
    report_name,
)
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.errors import DataError


@pytest.mark.parametrize(
    ("path", "parsed"),
    [
        ("hf:gsm8k", HubDataset("gsm8k", None, "train", None)),
        ("hf:openai/gsm8k:test", HubDataset("openai/gsm8k", None, "test", None)),
        ("hf:openai/gsm8k:main:train", HubDataset("openai/gsm8k", "main", "train", None)),
        ("hf:openai/gsm8k:main:train[:10%]", HubDataset("openai/gsm8k", "main", "train[:10%]", None)),
        ("hf:openai/gsm8k@v1.0:test", HubDataset("openai/gsm8k", None, "test", "v1.0")),
    ],
)
def test_hub_names(path, parsed):
    assert hub_dataset(path) == parsed
    assert is_remote(path)


@pytest.mark.parametrize(
    "path", ["hf:", "hf:a/b/c", "hf:a b:train", "hf:a:", "runs:/", "runs:/abc", "models:/name/1", "models:/name"]
)
def test_malformed_names_are_refused_with_the_form(path):
    with pytest.raises(DataError, match=r"fix: use (hf:NAME:SPLIT|runs:/RUN_ID/PATH)"):
        check_location(path)


def test_files_are_no_remote_names(tmp_path):
    assert not is_remote("data/train.jsonl")
    assert local_copy("data/train.jsonl", tmp_path).as_posix() == "data/train.jsonl"
    assert (report_name("data/train.jsonl"), report_name("/home/me/train.jsonl")) == ("data/train.jsonl", "train.jsonl")


@pytest.fixture
def run_id(tmp_path, empty_store):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = mlflow.create_experiment("data", (tmp_path / "artifacts").as_uri())
    rows = [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(20)]
    with mlflow.start_run(experiment_id=experiment) as run:
        mlflow.log_text("\n".join(map(json.dumps, rows)), "sets/train.jsonl")
        mlflow.log_text('{"prompt": "p"', "sets/broken.jsonl")
    yield run.info.run_id
    mlflow.set_tracking_uri(before)


def request(path):
    return DataRequest((DataFile(path, "t"),), 0.2, "auto", {}, "error", 512, None, 0)


def test_artifact_of_a_run_is_data_under_its_own_name(run_id, tmp_path, byte_tokenizer):
    from pathlib import Path

    path = Path(f"runs:/{run_id}/sets/train.jsonl")
    prepared = prepare(request(path), ChatRenderer(byte_tokenizer), tmp_path / "out")
    assert prepared.report.files[0].name == str(path)
    assert {row.source for row in prepared.eval_rows} == {str(path)}
    with pytest.raises(DataError) as caught:
        prepare(request(Path(f"runs:/{run_id}/sets/broken.jsonl")), ChatRenderer(byte_tokenizer), tmp_path / "out")
    assert f"runs:/{run_id}/sets/broken.jsonl, line 1: the last line is incomplete" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_missing_artifact_raises_with_the_fix(run_id, tmp_path):
    with pytest.raises(
        DataError, match=r"sets/nothing\.jsonl: cannot fetch the artifact from sqlite.*fix: check the run"
    ):
        local_copy(f"runs:/{run_id}/sets/nothing.jsonl", tmp_path / "got")
    with pytest.raises(DataError, match="cannot fetch the artifact from sqlite"):
        local_copy("models:/no-such-model/1/data.jsonl", tmp_path / "got")


def test_recipe_and_override_keep_names_of_elsewhere(tmp_path):
    from mlflow_finetune_plugin.config.absolute_paths import resolve_paths
    from mlflow_finetune_plugin.config.run_config import load_config

    (tmp_path / "finetune.yaml").write_text("data: {train: [rows.jsonl, 'hf:ours/labels:train']}\n")
    overrides = {"eval_data": "runs:/abc/sets/test.jsonl"}
    config = resolve_paths(load_config(tmp_path, "lora", overrides, caller=tmp_path / "elsewhere"), tmp_path)
    assert [file.path for file in config.data.train] == [str(tmp_path / "rows.jsonl"), "hf:ours/labels:train"]
    assert [file.path for file in config.data.eval] == ["runs:/abc/sets/test.jsonl"]
