"""Plain text from file to registered model: trained on documents, proven by perplexity alone."""

import json

import pytest
from pipeline_runs import config_for, run_pipeline
from tiny_bases import tiny_base


@pytest.fixture
def documents(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_text("\n\n".join(f"the quick brown fox jumps over the lazy dog number {i}.\n" * 8 for i in range(40)))
    return path


@pytest.mark.train
def test_documents_are_learnt_and_proven_by_perplexity(tmp_path, empty_store, documents):
    base = tiny_base(tmp_path / "base")
    data = {"train": [{"path": str(documents)}], "eval": 0.2, "overlength": "split"}
    held_out = {"metrics": "auto", "max_new_tokens": "auto"}
    training = {"max_steps": 3, "learning_rate": 2e-2, "max_length": 64, "save_steps": None}
    config = config_for(tmp_path, base, data=data, eval=held_out, training=training)
    ran = run_pipeline(tmp_path / "run", empty_store, config)
    metrics = ran.run.data.metrics
    assert {name for name in metrics if name.startswith("eval/base/")} == {"eval/base/perplexity"}
    assert metrics["eval/adapter/perplexity"] < metrics["eval/base/perplexity"]
    reasons = json.loads(ran.artifact("finetune/config.json").read_text())["reasons"]
    assert reasons["eval.metrics"] == "perplexity: plain text has no answers to compare"
    assert reasons["eval.max_new_tokens"].endswith("a sample for people; metrics of plain text do not use it")
    report = json.loads(ran.artifact("finetune/data_report.json").read_text())
    assert (report["eval_rows"], report["over_length"], report["train_rows"]) == (8, 40, 32)
    assert "stories.txt" in ran.artifact("finetune/data_report.html").read_text()
    inputs = ran.run.inputs.dataset_inputs
    assert {entry.dataset.name for entry in inputs} == {"stories.txt", "held-out"}
