"""Every recipe does on the embedded base what its README says, and its GPU variant is a valid config."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from pipeline_runs import run_pipeline

from mlflow_finetune_plugin.config.entry_points import ENTRY_POINTS
from mlflow_finetune_plugin.config.run_config import load_config

RECIPES = REPOSITORY / "recipes"
NAMES = sorted(path.parent.name for path in RECIPES.glob("*/finetune.yaml"))
GAINS = {
    "house_style": {"exact_match": 0.3, "rougeL": 0.5},
    "several_tasks": {"exact_match": 0.4},
    "structured_extraction": {"exact_match": 0.3, "field_f1": 0.7},
    "domain_text": {"perplexity": 500.0},
    "preferences": {"exact_match": 0.5, "preference_accuracy": 0.1},
    "verifiable_rewards": {"reward": 0.03, "exact_match": 0.03},
    "vision": {"exact_match": 0.15},
}
"""Bounds for the lower end of each gain's interval: far below the measured value, far above chance."""
STEPS = {
    "house_style": 300,
    "several_tasks": 100,
    "structured_extraction": 80,
    "domain_text": 40,
    "preferences": 80,
    "verifiable_rewards": 25,
    "vision": 220,
}
"""A part of each recipe's steps, which is enough for these gains."""


def entry_point(folder):
    """Return the entry point of the command in the first line."""
    first = (folder / "finetune.yaml").read_text(encoding="utf-8").splitlines()[0]
    match = re.fullmatch(r"# mlflow run \. -b finetune -e (\w+)", first)
    assert match, first
    return match[1]


def test_each_entry_point_that_trains_has_a_recipe():
    comments = [
        line
        for name in NAMES
        for line in (RECIPES / name / "finetune.yaml").read_text(encoding="utf-8").splitlines()
        if line.startswith("#")
    ]
    assert set(re.findall(r"-e (\w+)", "\n".join(comments))) == set(ENTRY_POINTS)


@pytest.mark.parametrize("name", NAMES)
def test_variant_for_gpus_is_the_same_recipe_on_a_hub_model(name):
    folder = RECIPES / name
    offline, on_gpu = (
        load_config(project, entry_point(project), {}, caller=REPOSITORY) for project in (folder, folder / "gpu")
    )
    assert offline.base_model.name == ("embedded_vision" if name == "vision" else "embedded")
    assert "/" in on_gpu.base_model.name
    assert on_gpu.adaptation == offline.adaptation
    assert [file.task for file in on_gpu.data.train] == [file.task for file in offline.data.train]
    for file in on_gpu.data.train:
        assert (folder / "gpu" / file.path).resolve().is_file()


@pytest.mark.process
@pytest.mark.parametrize("name", NAMES)
def test_data_is_what_its_script_writes(name, tmp_path):
    """The script writes exactly the committed data, so a change of the script needs new data."""
    source = RECIPES / name
    copy = tmp_path / name
    (copy / "data").mkdir(parents=True)
    (copy / "make_data.py").write_bytes((source / "make_data.py").read_bytes())
    subprocess.run([sys.executable, str(copy / "make_data.py")], check=True, cwd=tmp_path)
    written = sorted((copy / "data").iterdir())
    assert written
    for file in written:
        assert file.read_bytes() == (source / "data" / file.name).read_bytes(), file.name


@pytest.mark.train
@pytest.mark.process
@pytest.mark.parametrize("name", sorted(GAINS))
def test_recipe_teaches_what_it_says(name, tmp_path, empty_store, monkeypatch):
    folder = RECIPES / name
    monkeypatch.chdir(folder)  # as the worker of a run
    shorter = {"training.max_steps": str(STEPS[name]), "eval.forgetting": "false"}
    if (folder / "data" / "test.jsonl").exists():
        shorter["eval.max_rows"] = "60"
    config = load_config(folder, entry_point(folder), shorter, caller=REPOSITORY)
    ran = run_pipeline(tmp_path / name, empty_store, config)
    metrics = ran.run.data.metrics
    for metric, least in GAINS[name].items():
        assert metrics[f"eval/gain_low/{metric}"] > least
    report = json.loads(ran.artifact("finetune/data_report.json").read_text())
    assert report["warnings"] == []
    assert ran.result["model_uri"] == f"models:/{name}/1"
