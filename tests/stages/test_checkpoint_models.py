"""Evaluated checkpoints are models of the run: each with its step and its held-out loss, and loadable."""

import mlflow
import pytest
from pipeline_runs import config_for, run_pipeline
from tiny_bases import tiny_base

pytestmark = [pytest.mark.train]


def test_each_evaluated_checkpoint_is_a_model_with_its_held_out_loss(tmp_path, empty_store):
    training = {"max_steps": 6, "save_steps": 2, "eval_steps": 2}
    ran = run_pipeline(
        tmp_path / "run", empty_store, config_for(tmp_path, tiny_base(tmp_path / "base"), training=training)
    )
    models = {output.step: output.model_id for output in ran.run.outputs.model_outputs}
    assert sorted(models) == [2, 4, 6]
    assert models[6] == ran.result["model_id"]  # the kept step is the registered model itself
    history = {metric.step: metric.value for metric in ran.client.get_metric_history(ran.run_id, "eval_loss")}
    mlflow.set_tracking_uri(ran.tracking_uri)
    answers = []
    for step in (2, 4):
        model = ran.client.get_logged_model(models[step])
        (loss,) = [metric for metric in model.metrics if metric.key == "checkpoint/eval_loss"]
        assert (loss.step, loss.value) == (step, history[step])
        answers.append(mlflow.pyfunc.load_model(f"models:/{models[step]}").unwrap_python_model())
    first, second = ({name: p for name, p in one.model.named_parameters() if "lora_B" in name} for one in answers)
    assert any((first[name] != second[name]).any() for name in first)  # the weights of that step, not the last ones


def test_without_evaluation_no_checkpoint_becomes_a_model(tmp_path, empty_store):
    training = {"max_steps": 4, "save_steps": 2}
    ran = run_pipeline(
        tmp_path / "run", empty_store, config_for(tmp_path, tiny_base(tmp_path / "base"), training=training)
    )
    assert [output.model_id for output in ran.run.outputs.model_outputs] == [ran.result["model_id"]]


NOTE = "checkpoints are not logged as models: this initialisation changes the base until the end"


@pytest.mark.parametrize(("init", "is_noted"), [("default", False), ("pissa", True)])
def test_checkpoints_of_an_initialisation_that_changes_the_base_are_noted_once(tmp_path, empty_store, init, is_noted):
    training = {"max_steps": 4, "save_steps": 2, "eval_steps": 2}
    config = config_for(
        tmp_path,
        tiny_base(tmp_path / "base"),
        training=training,
        options={"rank": 4, "init": init},
    )
    ran = run_pipeline(tmp_path / "run", empty_store, config)
    assert [event["text"] for event in ran.events("note")].count(NOTE) == (1 if is_noted else 0)
    assert len(ran.run.outputs.model_outputs) == (1 if is_noted else 2)
