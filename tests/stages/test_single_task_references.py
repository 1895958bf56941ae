"""A real mixture of two tasks through the pipeline: shares, per-task metrics, and what the mixture costs."""

import json

import pytest
from pipeline_runs import config_for, run_pipeline
from tiny_bases import tiny_base


def task_files(path, **rows):
    """A folder with so many training rows for each task, and the first six of them as held-out rows."""
    folder = path / "data"
    folder.mkdir()
    for task, count in rows.items():
        lines = [json.dumps({"prompt": f"{task} {i}?", "completion": f"{task[:3]} {i % 3}"}) for i in range(count)]
        (folder / f"{task}.jsonl").write_text("\n".join(lines))
        (folder / f"{task}.test.jsonl").write_text("\n".join(lines[:6]))
    return folder


@pytest.mark.train
def test_two_tasks_are_mixed_proven_apart_and_compared_with_adapters_of_their_own(tmp_path, empty_store):
    files = ("colours", "counting")
    folder = task_files(tmp_path, colours=40, counting=8)
    config = config_for(
        tmp_path,
        tiny_base(tmp_path / "base"),
        entry_point="multitask",
        data={
            "train": [{"path": str(folder / f"{task}.jsonl"), "task": task} for task in files],
            "eval": [{"path": str(folder / f"{task}.test.jsonl"), "task": task} for task in files],
            "mixing": "equal",
        },
        eval={"single_task_references": True},
    )
    ran = run_pipeline(tmp_path / "run", empty_store, config)
    shares = json.loads(ran.artifact("finetune/mixture.json").read_text())
    assert shares == [{"task": "colours", "rows": 40, "drawn": 24}, {"task": "counting", "rows": 8, "drawn": 24}]
    metrics = ran.run.data.metrics
    for task in files:
        gain = metrics[f"eval/adapter/exact_match/{task}"] - metrics[f"eval/base/exact_match/{task}"]
        assert metrics[f"eval/gain/exact_match/{task}"] == pytest.approx(gain)
        low, high = (metrics[f"interference/perplexity/{task}_{end}"] for end in ("low", "high"))
        assert low <= metrics[f"interference/perplexity/{task}"] <= high
        assert metrics[f"interference/perplexity/{task}"] != 0  # another adapter than the mixture's
    table = json.loads(ran.artifact("proof/interference.json").read_text())
    assert {row[0] for row in table["data"]} == set(files)
    assert {"tasks.png", "interference.png"} <= {path.name for path in ran.artifact("plots").iterdir()}
    assert not any("no row to train on" in event["text"] for event in ran.events("note"))
    assert len(ran.client.search_model_versions("name='bot'")) == 1  # the references are not registered


@pytest.mark.train
def test_a_task_that_is_only_held_out_is_noted_and_has_no_reference(tmp_path, empty_store):
    folder = task_files(tmp_path, colours=8, counting=8, unseen=8)
    trained, measured = ("colours", "counting"), ("colours", "counting", "unseen")
    config = config_for(
        tmp_path,
        tiny_base(tmp_path / "base"),
        entry_point="multitask",
        data={
            "train": [{"path": str(folder / f"{task}.jsonl"), "task": task} for task in trained],
            "eval": [{"path": str(folder / f"{task}.test.jsonl"), "task": task} for task in measured],
        },
        eval={"single_task_references": True},
    )
    ran = run_pipeline(tmp_path / "run", empty_store, config)
    notes = [event["text"] for event in ran.events("note")]
    assert "task unseen has no row to train on, so no single-task adapter to compare with" in notes
    table = json.loads(ran.artifact("proof/interference.json").read_text())
    assert {row[0] for row in table["data"]} == set(trained)
