"""The real command on a base whose weights are a hole in a file: nothing is read, no run is made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_bases import tiny_base, write_rows

from mlflow_finetune_plugin.cli.main import main
from mlflow_finetune_plugin.planning import forecast
from mlflow_finetune_plugin.planning.memory import MemoryRoom


@pytest.fixture
def project(desk) -> Path:
    """A project whose base has a header that promises weights, and a sparse file behind it."""
    base = tiny_base(desk.path / "base", hidden_size=128)
    weights = base / "model.safetensors"
    size = weights.stat().st_size
    with weights.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        stream.seek(0)
        header = stream.read(8 + length)
    with weights.open("wb") as stream:
        stream.write(header)
        stream.truncate(size)
    assert weights.stat().st_blocks * 512 < size / 2
    write_rows(desk.path / "bot" / "data")
    (desk.path / "bot" / "finetune.yaml").write_text(
        f"base_model: {base}\ndata: {{train: data/train.jsonl, eval: data/test.jsonl}}\nregister: {{name: bot}}\n"
    )
    return desk.path / "bot"


@pytest.mark.process
def test_plan_starts_with_the_verdict_and_creates_nothing(project, desk):
    done = desk.cli("plan", "bot")
    assert done.returncode == 0, done.stdout
    for word in (
        "verdict  fits: needs ",
        "memory   training",
        "time     about",
        "auto     training.max_batch_tokens = ",
    ):
        assert word in done.stdout
    assert "serving  vllm --enable-lora --max-lora-rank 16: vLLM loads the adapter beside its base" in done.stdout
    assert not (desk.home / "jobs").exists()
    client = desk.client()
    assert client.search_runs([e.experiment_id for e in client.search_experiments()]) == []


@pytest.mark.parametrize("entry_point", ["lora", "qlora", "adapters", "multitask"])
def test_every_entry_point_is_planned(project, entry_point, capsys):
    assert main(["plan", "bot", "-e", entry_point, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["forecast"]["verdict"] == "fits"
    assert said["forecast"]["memory_bytes"]["total"] > 0
    assert said["serving"]["engine"] == ("transformers" if entry_point == "adapters" else "vllm")
    assert said["base_model"]["precision"] == ("float32+nf4" if entry_point == "qlora" else "float32")


def test_what_does_not_fit_ends_with_2_and_says_what_would(project, monkeypatch, capsys):
    monkeypatch.setattr(forecast, "memory_room", lambda *_: MemoryRoom(2**20, "a test's limit"))
    assert main(["plan", "bot"]) == 2
    assert "verdict  does not fit: needs " in capsys.readouterr().out


def test_a_folder_that_is_not_there_is_told(project, capsys):
    assert main(["plan", "nowhere"]) == 2
    assert "nowhere: no such project folder; fix: name a folder" in capsys.readouterr().err
