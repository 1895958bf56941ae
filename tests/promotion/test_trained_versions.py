"""Versions that real runs trained: what the policy asks is written before the training, and a champion of other rows is asked."""

import json
from pathlib import Path

import mlflow
import pytest
from conftest import REPOSITORY

from mlflow_finetune_plugin.promotion.evidence.proven_version import read_version
from mlflow_finetune_plugin.promotion.moves.audit import history
from mlflow_finetune_plugin.store.names import SERVED_TAG
from mlflow_finetune_plugin.store.served_tags import ServedSummary

pytestmark = pytest.mark.process

QUICKSTART = REPOSITORY / "recipes" / "quickstart"

RECIPE = """
data: {{train: {data}/train.jsonl, eval: {data}/test.jsonl}}
options: {{rank: 16}}
training: {{per_device_train_batch_size: 16, max_steps: 120}}
eval: {{metrics: [exact_match], max_new_tokens: 8, max_rows: 40, forgetting: false}}
register:
  name: bot
  gate:
    gain: {{metric: exact_match}}
    regressions: [{{data: must-pass.jsonl, metric: exact_match, at_least: 0.5}}]
"""


def newest_run(client):
    """Return the project's newest run; decisions and checks record theirs in other experiments."""
    experiment = client.get_experiment_by_name("project")
    return client.search_runs([experiment.experiment_id], order_by=["start_time DESC"])[0]


def test_two_versions_of_real_runs(workplace):
    project = workplace.path / "project"
    project.mkdir()
    (project / "finetune.yaml").write_text(RECIPE.format(data=QUICKSTART / "data"))
    must_pass = (QUICKSTART / "data" / "test.jsonl").read_text().splitlines()[:4]
    (project / "must-pass.jsonl").write_text("\n".join(must_pass))
    for more in ([], ["-P", "max_steps=30", "-P", "eval.max_rows=30"]):
        trained = workplace.finetune_run(str(project), "-e", "lora", *more)
        assert trained.returncode == 0, trained.stdout
    client = workplace.client()
    first = read_version(client, "bot", "1")
    assert client.get_run(first.run_id).data.tags["finetune.gate_digest"] == first.policy.digest
    assert [row.reference for row in first.regression_rows("must-pass.jsonl").rows] == [
        json.loads(line)["completion"] for line in must_pass
    ]
    command = ["mlflow_finetune_plugin.cli", "promote", "bot", "--version", "1"]
    process = workplace.start(command)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    judged = workplace.mlflow_run(str(project), "-e", "promote")
    assert judged.returncode == 0, judged.stdout
    run = newest_run(client)
    assert run.info.status == "FINISHED"
    assert run.data.tags["finetune.verdict"] in ("hold", "reject"), "a fourth of the steps is no better"
    record = history(client, "bot")[0]
    assert (record.from_version, record.to_version, record.is_moved) == ("1", "2", False)
    assert record.run_id == run.data.tags["finetune.promotion_run"]
    (told,) = [
        one
        for one in json.loads(Path(client.download_artifacts(record.run_id, "sides.json", workplace.path)).read_text())
        if one["adapter"] == first.adapter_digest
    ]
    rows = read_version(client, "bot", "2").held_out.rows
    mlflow.set_tracking_uri(workplace.tracking_uri)
    champion = mlflow.pyfunc.load_model("models:/bot/1")
    questions = [row.messages[-1]["content"] for row in rows]
    assert told["answers"] == list(champion.predict(questions, params={"max_new_tokens": 8}))
    _watched(workplace, project, client)


def _watched(workplace, project, client):
    """The lesser version, made champion by hand, is asked new rows, and goes for what its router told of it."""
    client.set_registered_model_alias("bot", "champion", "2")
    client.set_registered_model_alias("bot", "previous", "1")
    test_rows = [json.loads(line) for line in (QUICKSTART / "data" / "test.jsonl").read_text().splitlines()]
    new = [{"question": row["prompt"], "label": row["completion"]} for row in test_rows[40:100]]
    (workplace.path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in new))
    with (project / "finetune.yaml").open("a") as recipe:
        recipe.write("  watch: {proof: {alpha: 0.2}}\n")
    project.joinpath("finetune.yaml").write_text(
        project.joinpath("finetune.yaml")
        .read_text()
        .replace("data: {", "data: {columns: {prompt: question, completion: label}, ")
    )
    told = ServedSummary(1.0, 200, 60, None).to_json()
    client.set_model_version_tag("bot", "2", f"{SERVED_TAG}here-8000", told)
    looked = workplace.cli("watch", "bot", "--data", "new.jsonl", "--policy", "project", "--json")
    assert looked.returncode == 4, looked.stdout
    assert "reading new.jsonl with the template of models:/bot/2" in looked.stdout
    told = json.loads(looked.stdout[looked.stdout.index("{\n") :])
    found = {one["name"]: one for one in told["verdict"]["findings"]}
    proof = found["proof on new rows"]
    assert (proof["details"]["rows"], proof["details"]["set_of_rows"]) == (40, 2), (
        "of 60, as the recipe's eval.max_rows says"
    )
    assert proof["estimate"] <= 0, "a fourth of the steps is no better"
    assert {found[name]["outcome"] for name in ("drift of data", "drift of nats per token")} <= {"keep", "re-tune"}
    assert found["drift of data"]["details"]["held_out_rows"] == 30
    acted = workplace.mlflow_run(str(project), "-e", "watch", "-P", "act=true")
    assert acted.returncode == 0, acted.stdout
    run = newest_run(client)
    assert run.data.tags["finetune.watch"] == "roll back"
    assert "measuring the answers of models:/bot" not in acted.stdout, "the answers are known by now"
    newest = history(client, "bot")[0]
    assert (newest.kind, newest.from_version, newest.to_version) == ("rollback", "2", "1")
    assert newest.reason.startswith(f"watch, run {run.data.tags['finetune.watch_run']}: ")
    assert "errors: 60 of 200 answers failed" in newest.reason


def test_a_policy_that_cannot_be_written_costs_no_run(workplace):
    project = workplace.path / "project"
    project.mkdir()
    (project / "finetune.yaml").write_text(RECIPE.format(data=QUICKSTART / "data"))
    refused = workplace.finetune_run(str(project), "-e", "lora")
    assert refused.returncode == 2
    assert "must-pass.jsonl" in refused.stdout
    assert workplace.runs() == []


def test_a_must_pass_row_that_cannot_be_asked_ends_the_run_before_the_training(workplace):
    project = workplace.path / "project"
    project.mkdir()
    (project / "finetune.yaml").write_text(RECIPE.format(data=QUICKSTART / "data"))
    rows = [{"prompt": "where is it?", "completion": "delivery"}, {"prompt": "and now?", "completion": ""}]
    (project / "must-pass.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = workplace.finetune_run(str(project), "-e", "lora")
    assert ended.returncode == 1
    run = workplace.only_run()
    assert run.info.status == "FAILED"
    assert "1 of its rows cannot be used" in run.data.tags["finetune.status_reason"]
    assert "loss" not in run.data.metrics
