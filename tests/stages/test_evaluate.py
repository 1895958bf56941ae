"""``-e evaluate`` through the real command, on a version that a real run registered."""

import json
from pathlib import Path

import pytest
from conftest import REPOSITORY

from mlflow_finetune_plugin.store.registry import find_model

QUICKSTART = REPOSITORY / "recipes" / "quickstart"
TEST_ROWS = QUICKSTART / "data" / "test.jsonl"


def evaluate(workplace, *arguments):
    return workplace.finetune_run(str(workplace.path), "-e", "evaluate", *arguments)


@pytest.mark.process
def test_evaluation_of_a_registered_version_says_what_its_own_run_said(workplace):
    text = QUICKSTART / "data" / "general.txt"
    same = ["-P", "eval.max_rows=40", "-P", "metrics=exact_match,perplexity", "-P", f"forgetting={text}"]
    same += ["-P", "eval.max_new_tokens=8"]  # the recipe's, which the project of the evaluation does not have
    trained = workplace.finetune_run(str(QUICKSTART), "-e", "lora", "-P", "max_steps=30", *same)
    assert trained.returncode == 0, trained.stdout
    before = workplace.only_run()
    rows = [json.loads(row) for row in Path(TEST_ROWS).read_text().splitlines()]
    held_out = workplace.path / "test.jsonl"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = evaluate(workplace, "-P", "model=models:/quickstart@challenger", "-P", "eval_data=test.jsonl", *same)
    assert result.returncode == 0, result.stdout
    client = workplace.client()
    (run,) = [r for r in workplace.runs() if r.info.run_id != before.info.run_id]
    assert run.info.status == "FINISHED"
    assert run.data.params["model"] == "models:/quickstart/1"
    assert run.data.tags["finetune.evaluated_model"] == "models:/quickstart/1"
    assert run.data.tags["finetune.trained_on_digest"] == before.data.tags["finetune.data_digest"]
    (held_out_input,) = run.inputs.dataset_inputs
    assert held_out_input.dataset.digest == run.data.tags["finetune.data_digest"]
    found = {name: value for name, value in run.data.metrics.items() if name.startswith(("eval/", "forgetting/"))}
    told = {name: value for name, value in before.data.metrics.items() if name.startswith(("eval/", "forgetting/"))}
    assert found["eval/rows"] == told["eval/rows"] == 40
    assert {"eval/answer_tokens/base", "eval/answer_tokens/adapter"} <= found.keys()
    assert found == pytest.approx(told, abs=1e-4)
    report = json.loads(Path(client.download_artifacts(run.info.run_id, "finetune/data_report.json")).read_text())
    assert report["leaked_rows"] == 0
    assert not [note for note in report["notes"] if "not known" in note]
    seen = [json.loads(row) for row in (QUICKSTART / "data" / "train.jsonl").read_text().splitlines()[:15]]
    (workplace.path / "seen.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*seen, *rows[:10]]))
    again = evaluate(
        *(workplace, "-P", "model=models:/quickstart/1", "-P", "eval_data=seen.jsonl", "-P", "forgetting=false")
    )
    assert again.returncode == 0, again.stdout
    assert (
        "15 of 25 rows are rows that the adapter was trained on; for them this evaluation proves nothing"
        in again.stdout
    )
    assert "on 25 evaluated rows" in again.stdout
    found = find_model(client, "models:/quickstart@challenger")
    model = client.get_logged_model(found.model_id)
    assert {before.info.run_id, run.info.run_id} <= {metric.run_id for metric in model.metrics}
