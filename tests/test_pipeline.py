"""The whole path in this process: many architectures, what reaches MLflow, and what a second run changes."""

import gc
import json
import math
import os
import weakref
from pathlib import Path

import pytest
import torch
from pipeline_runs import Ran, config_for, run_pipeline
from safetensors.torch import load_file
from tiny_bases import FAMILIES, tiny_base

from mlflow_finetune_plugin.base_models import loading
from mlflow_finetune_plugin.errors import TrainingError
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.stages import log

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def first(tmp_path_factory, empty_store) -> Ran:
    """Everything left to auto, on the packaged base."""
    folder = tmp_path_factory.mktemp("first")
    config = config_for(
        folder,
        "embedded",
        options={"rank": "auto"},
        training={"learning_rate": "auto", "per_device_train_batch_size": "auto", "max_steps": 6, "eval_steps": 3},
        eval={"metrics": "auto", "max_new_tokens": "auto", "forgetting": None},
    )
    return run_pipeline(folder / "run", empty_store, config)


@pytest.mark.train
def test_the_story_is_told_in_order(first):
    assert list(dict.fromkeys(first.stages())) == [
        "plan",
        "data",
        "train",
        "proof",
        "model",
        "champion",
        "page",
        "next",
    ]
    lines = {event["name"]: event["text"] for event in first.events("stage")}
    assert "24 rows to train on, 12 held out; none skipped" in lines["data"]
    assert lines["train"].startswith("6 steps in ")
    not_better = "no alias, because it is not better than its base: exact match 0 -> 0"
    assert lines["model"] == f"models:/bot/1, {not_better}"
    assert lines["champion"] == "bot has none yet, and a version that is not better than its base does not become it"
    assert first.result["summary"].endswith("models:/bot/1")
    assert any(event["done"] == 6 and event["total"] == 6 for event in first.events("progress"))


@pytest.mark.train
def test_no_auto_is_left_and_each_has_its_reason(first):
    params = first.run.data.params
    assert "auto" not in [value for key, value in params.items() if key != "register.first_champion"]
    assert params["base_model.dtype"] == "float32"
    assert params["data.layout"] == "prompt_completion"
    assert params["base_model"] == "embedded"  # MLflow logs the logged model's model_config as params of the run
    config = json.loads(first.artifact("finetune/config.json").read_text())
    asked = first.config.model_dump(by_alias=True)
    autos = [
        f"{name}.{key}" for name in ("training", "eval", "options") for key, v in asked[name].items() if v == "auto"
    ]
    assert {"options.rank", "training.learning_rate", "eval.metrics"} <= set(autos)
    for key in [*autos, "options.alpha", "base_model.dtype", "data.layout"]:
        value, _, why = config["reasons"][key].partition(": ")
        assert why, key
        section, leaf = key.split(".")
        chosen = config[section][leaf]
        assert value in (
            str(chosen),
            ", ".join(chosen) if isinstance(chosen, list) else f"{chosen:g}" if isinstance(chosen, float) else None,
        ), key
    assert params["options.rank"] == "32"
    assert params["training.max_steps"] == "6"
    assert params["register.name"] == "bot"


@pytest.mark.train
def test_metrics_reach_run_and_model(first):
    metrics = first.run.data.metrics
    names = json.loads(first.run.data.params["eval.metrics"])
    assert names == ["exact_match", "token_f1", "perplexity"]
    expected = {
        f"eval/{part}/{name}" for part in ("base", "adapter", "gain", "gain_low", "gain_high") for name in names
    }
    expected |= {"forgetting/nats_per_token", "train/loss", "train/grad_norm", "eval_loss", "reload/max_nats"}
    assert expected <= set(metrics)
    assert all(math.isfinite(metrics[name]) for name in expected)
    assert metrics["eval/gain/exact_match"] == pytest.approx(
        metrics["eval/adapter/exact_match"] - metrics["eval/base/exact_match"]
    )
    assert (
        metrics["eval/gain_low/perplexity"] <= metrics["eval/gain/perplexity"] <= metrics["eval/gain_high/perplexity"]
    )
    model = first.client.get_logged_model(first.result["model_id"])
    assert {m.key for m in model.metrics} >= {"eval/gain/exact_match", "forgetting/nats_per_token", "reload/max_nats"}
    assert [m.step for m in first.client.get_metric_history(first.run_id, "eval_loss")] == [3, 6]


@pytest.mark.train
def test_artifacts_are_whole(first):
    for name in ("1_loss.png", "2_gain.png"):
        assert first.artifact(name).read_bytes()[:8] == PNG
        assert first.artifact(name).stat().st_size > 5_000
    table = json.loads(first.artifact("proof/rows.json").read_text())
    assert len(table["data"]) == 12
    assert {"prompt", "reference", "base_answer", "adapter_answer"} <= set(table["columns"])
    assert json.loads(first.run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "proof/rows.json", "type": "table"}]
    assert json.loads(first.artifact("finetune/data_report.json").read_text())["train_rows"] == 24


@pytest.mark.train
def test_the_run_names_its_data(first):
    inputs = {entry.tags[0].value: entry.dataset for entry in first.run.inputs.dataset_inputs}
    assert set(inputs) == {"train", "eval"}
    assert inputs["train"].digest == first.run.data.tags["finetune.data_digest"]
    assert inputs["eval"].digest != inputs["train"].digest
    assert "train.jsonl" in inputs["train"].source
    assert "test.jsonl" in inputs["eval"].source


@pytest.mark.train
def test_version_carries_its_identity(first):
    version = first.client.get_model_version("bot", "1")
    assert version.aliases == [], "six steps made nothing better"
    assert "**Not better than its base.**" in version.description
    assert version.run_id == first.run_id
    wanted = ("adaptation", "objective", "base_model", "base_digest", "data_digest", "adapter_digest", "serving")
    assert {f"finetune.{name}" for name in wanted} <= set(version.tags)
    assert version.tags["finetune.serving"] == "vllm"
    assert version.tags["finetune.base_model"] == "embedded"
    assert version.tags.items() <= first.run.data.tags.items()
    assert "exact match" in version.description


@pytest.mark.train
def test_equal_configs_give_equal_bits(first, tmp_path, empty_store):
    store = Path(first.tracking_uri.removeprefix("sqlite:///"))
    second = run_pipeline(tmp_path / "second", empty_store, first.config, store=store)
    one, two = (load_file(ran.work / "adapter" / "adapter_model.safetensors") for ran in (first, second))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    version = first.client.get_model_version("bot", "2")
    assert version.run_id == second.run_id
    versions = {str(v.version): v for v in first.client.search_model_versions("name = 'bot'")}
    assert versions["1"].tags["finetune.adapter_digest"] == versions["2"].tags["finetune.adapter_digest"]
    assert first.events("metrics")[-1]["values"] == second.events("metrics")[-1]["values"]


@pytest.mark.train
def test_another_seed_gives_another_adapter(first, tmp_path, empty_store):
    training = first.config.training.model_copy(update={"seed": 1})
    other = run_pipeline(tmp_path, empty_store, first.config.model_copy(update={"training": training}))
    assert other.run.data.tags["finetune.adapter_digest"] != first.run.data.tags["finetune.adapter_digest"]


@pytest.mark.train
def test_counts_and_speeds_are_true(first):
    rows = json.loads(first.artifact("finetune/data_report.json").read_text())["train"]
    metrics = first.run.data.metrics
    # 24 rows, batch 16: 2 steps an epoch, so 6 steps are 3 passes over every token
    assert metrics["train/total_tokens"] == 3 * rows["tokens"]
    assert metrics["train/tokens"] == metrics["train/total_tokens"]
    assert metrics["train/epoch"] == 3
    speeds = [m.value for m in first.client.get_metric_history(first.run_id, "train/tokens_per_second")]
    assert len(speeds) == 6
    assert min(speeds) > metrics["train/total_tokens"] / metrics["train/seconds"] / 20
    last = [event for event in first.events("progress") if event["stage"] == "train"][-1]
    assert last["seconds_left"] == 0
    assert last["loss"] == metrics["train/loss"]


@pytest.mark.train
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_and_loads_back(family, tmp_path, empty_store):
    config = config_for(tmp_path, tiny_base(tmp_path / "base", family))
    ran = run_pipeline(tmp_path / "run", empty_store, config)
    assert ran.reload_error() < 1e-5
    losses = [m.value for m in ran.client.get_metric_history(ran.run_id, "train/loss")]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    # no 4-token answer of a random model is right, but a few steps already make the right one likelier
    assert ran.run.data.metrics["eval/gain/perplexity"] > 0
    expected = "transformers" if family == "gpt2" else "vllm"
    assert ran.run.data.tags["finetune.serving"] == expected


@pytest.mark.train
def test_sharded_base(tmp_path, empty_store):
    base = tiny_base(tmp_path / "base", "qwen2", shard="40KB")
    assert len(list(base.glob("*.safetensors"))) > 2
    assert (base / "model.safetensors.index.json").exists()
    whole = run_pipeline(tmp_path / "a", empty_store, config_for(tmp_path, tiny_base(tmp_path / "whole", "qwen2")))
    ran = run_pipeline(tmp_path / "b", empty_store, config_for(tmp_path, base))
    assert ran.run.data.metrics["train/loss"] == whole.run.data.metrics["train/loss"]
    assert ran.run.data.tags["finetune.base_digest"] != whole.run.data.tags["finetune.base_digest"]


@pytest.mark.train
@pytest.mark.parametrize(
    ("settings", "precision"),
    [({}, "float32"), ({"dtype": "bfloat16"}, "bfloat16"), ({"dtype": "float16"}, "float16")],
    ids=str,
)
def test_half_precision_base(settings, precision, tmp_path, empty_store):
    base = tiny_base(tmp_path / "base", "qwen3", dtype=torch.bfloat16)
    ran = run_pipeline(
        tmp_path / "run", empty_store, config_for(tmp_path, base, base_model={"name": str(base), **settings})
    )
    assert ran.reload_error() < 1e-5
    config = json.loads(ran.artifact("finetune/config.json").read_text())
    assert f", {precision}, cpu)" in next(e["text"] for e in ran.events("stage") if e["name"] == "plan")
    if not settings:
        assert config["reasons"]["base_model.dtype"] == "float32: no GPU with bfloat16"


@pytest.mark.train
def test_bf16_autocast_does_not_outlive_training(tmp_path, empty_store):
    config = config_for(tmp_path, tiny_base(tmp_path / "base"), training={"bf16": True})
    assert run_pipeline(tmp_path / "run", empty_store, config).reload_error() < 1e-5


@pytest.mark.train
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_quantised_base_trains_and_is_quantised_again(quantization, family, tmp_path, empty_store):
    base = tiny_base(tmp_path / "base", family)
    config = config_for(
        tmp_path,
        base,
        base_model={"name": str(base), "quantization": quantization},
        training={"eval_steps": 1, "max_steps": 4},
    )
    ran = run_pipeline(tmp_path / "run", empty_store, config)
    assert ran.reload_error() < 1e-4
    losses = [m.value for m in ran.client.get_metric_history(ran.run_id, "train/loss")]
    assert losses[-1] < losses[0]
    weights = load_file(ran.work / "adapter" / "adapter_model.safetensors")
    # every layer learns: a base whose layers pass no gradient on would leave the first ones at zero
    assert all(tensor.any() for tensor in weights.values())


@pytest.mark.train
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_quantised_base_refuses_a_start_that_changes_it(init, tmp_path, empty_store):
    base = tiny_base(tmp_path / "base")
    config = config_for(tmp_path, base, base_model={"name": str(base), "quantization": "nf4"}, options={"init": init})
    with pytest.raises(loading.BaseModelError, match="quantised weights"):
        run_pipeline(tmp_path / "run", empty_store, config)


@pytest.mark.train
@pytest.mark.parametrize("training", [{"gradient_checkpointing": True}, {"label_smoothing_factor": 0.1}])
def test_training_switches_reach_the_trainer(training, tmp_path, empty_store):
    base = tiny_base(tmp_path / "base")
    plain = run_pipeline(tmp_path / "a", empty_store, config_for(tmp_path, base))
    other = run_pipeline(tmp_path / "b", empty_store, config_for(tmp_path, base, training=training))
    first, second = (ran.run.data.metrics["train/loss"] for ran in (plain, other))
    if "gradient_checkpointing" in training:
        assert second == pytest.approx(first, abs=1e-5)
    else:
        assert second != pytest.approx(first, abs=1e-3)


@pytest.mark.train
@pytest.mark.parametrize("settings", [{}, {"enable_thinking": True}])
def test_qwen3_template_with_its_think_block(tmp_path, empty_store, settings):
    import trl

    template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    base = tiny_base(tmp_path / "base", "qwen3", chat_template=template)
    data = {"chat_template_kwargs": settings}
    ran = run_pipeline(tmp_path / "run", empty_store, config_for(tmp_path, base, data=data))
    report = json.loads(ran.artifact("finetune/data_report.json").read_text())
    assert report["answer_prefix"].startswith("<think>") is bool(settings)
    rows = json.loads(ran.artifact("proof/rows.json").read_text())
    answers = [row[rows["columns"].index("reference")] for row in rows["data"]]
    assert not any("think" in answer for answer in answers)


@pytest.mark.train
def test_base_without_chat_template(tmp_path, empty_store):
    base = tiny_base(tmp_path / "base", chat_template=None)
    ran = run_pipeline(tmp_path / "run", empty_store, config_for(tmp_path, base))
    report = json.loads(ran.artifact("finetune/data_report.json").read_text())
    assert report["template_source"] == "default"


@pytest.mark.train
def test_unregistered_run_still_has_its_model(tmp_path, empty_store):
    config = config_for(tmp_path, tiny_base(tmp_path / "base"), register=None)
    ran = run_pipeline(tmp_path / "run", empty_store, config)
    assert ran.client.search_registered_models() == []
    assert ran.result["model_uri"] == f"models:/{ran.result['model_id']}"


@pytest.mark.train
def test_run_with_rate_zero_is_refused_and_nothing_is_logged(tmp_path, empty_store):
    config = config_for(tmp_path, tiny_base(tmp_path / "base"), training={"max_steps": 1, "warmup_steps": 1.0})
    with pytest.raises(TrainingError, match="bit for bit at its start"):
        run_pipeline(tmp_path / "run", empty_store, config)


@pytest.mark.train
@pytest.mark.parametrize("options", [{"dora": True}, {"init": "pissa"}, {"init": "olora"}, {"init": "orthogonal"}])
def test_untouched_adapter_is_refused_whatever_its_start(options, tmp_path, empty_store):
    config = config_for(
        tmp_path, tiny_base(tmp_path / "base"), options=options, training={"max_steps": 1, "warmup_steps": 1.0}
    )
    with pytest.raises(TrainingError, match="bit for bit at its start"):
        run_pipeline(tmp_path / "run", empty_store, config)


@pytest.mark.train
def test_first_model_is_free_before_the_second_is_loaded(tmp_path, empty_store, monkeypatch):
    """The GPU must never hold the trained model, its optimiser and the reloaded model at once."""
    loaded: list[weakref.ref[torch.nn.Module]] = []
    alive_at_reload: list[int] = []
    load, reload = loading.load_base_model, log.reload_adapter

    def remembering_load(base):
        model = load(base)
        loaded.append(weakref.ref(model))
        loaded.extend(weakref.ref(parameter) for parameter in model.parameters())
        return model

    def counting_reload(uri):
        alive_at_reload.append(sum(ref() is not None for ref in loaded))
        return reload(uri)

    monkeypatch.setattr(loading, "load_base_model", remembering_load)
    monkeypatch.setattr(log, "reload_adapter", counting_reload)
    gc.disable()  # only the pipeline's own collection may free it
    try:
        run_pipeline(tmp_path / "run", empty_store, config_for(tmp_path, tiny_base(tmp_path / "base")))
    finally:
        gc.enable()
    assert len(loaded) > 10
    assert alive_at_reload == [0]


@pytest.mark.train
def test_proof_is_of_the_loaded_model(tmp_path, empty_store, monkeypatch):
    """What is proven is the object that came back from MLflow, base and adapter side."""
    from mlflow_finetune_plugin.evaluation import proof

    seen = {}
    reload, prove = log.reload_adapter, proof.prove

    def remembering_reload(uri):
        seen["uri"] = uri
        seen["loaded"], tokenizer = reload(uri)
        return seen["loaded"], tokenizer

    def remembering_prove(model, *args, **kwargs):
        seen["proven"] = model
        return prove(model, *args, **kwargs)

    monkeypatch.setattr(log, "reload_adapter", remembering_reload)
    monkeypatch.setattr(proof, "prove", remembering_prove)
    ran = run_pipeline(tmp_path / "run", empty_store, config_for(tmp_path, tiny_base(tmp_path / "base")))
    assert seen["proven"] is seen["loaded"]
    assert seen["uri"].endswith(ran.result["model_id"])


def test_report_survives_a_small_pipe_of_events(tmp_path):
    """A report opened twice appends: a resumed worker does not lose what the first one said."""
    path = tmp_path / "report.jsonl"
    Report(path).note("one")
    Report(path).note("two")
    assert [json.loads(line)["text"] for line in path.read_text().splitlines()] == ["one", "two"]
    assert os.stat(path).st_mode & 0o077 == 0
