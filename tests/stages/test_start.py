"""A training that starts from a version: the model begins as that version, and ends as one adapter of the same shape."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from peft import PeftModel
from pipeline_runs import Ran, config_for, run_pipeline
from safetensors.torch import load_file
from tiny_bases import tiny_base

from mlflow_finetune_plugin.base_models import loading
from mlflow_finetune_plugin.config.run_config import RunConfig
from mlflow_finetune_plugin.errors import ConfigError, ReloadError, TrainingError
from mlflow_finetune_plugin.evaluation.virtual_tokens import with_virtual_tokens
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.logged_models.loading import load_logged
from mlflow_finetune_plugin.logged_models.start_version import fetch_start, load_start
from mlflow_finetune_plugin.methods import load_method
from mlflow_finetune_plugin.planning.plan import make_plan
from mlflow_finetune_plugin.serving.versions.adapter_store import AdapterStore
from mlflow_finetune_plugin.serving.versions.fetching import Fetcher
from mlflow_finetune_plugin.stages import plan as plan_stage
from mlflow_finetune_plugin.stages.context import RunContext

URI = "models:/bot/1"
OTHER_ROWS = [{"prompt": f"what is behind number {i}?", "completion": f"a door {i}"} for i in range(24)]


def first_config(folder: Path, **sections) -> RunConfig:  # type: ignore[no-untyped-def]
    return config_for(folder, "embedded", training={"max_steps": 4}, **sections)


def next_config(first: Ran, folder: Path, reference: str = URI, **sections) -> RunConfig:  # type: ignore[no-untyped-def]
    """The config of a training on other rows; its options are those of nobody."""
    train = folder / "other.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    train.write_text("".join(json.dumps(row) + "\n" for row in OTHER_ROWS))
    values = {"start_from": reference, "is_adaptation_default": True, **sections}
    config = config_for(folder, values.pop("base", "embedded"), **values)
    data = config.data.model_copy(update={"train": [config.data.train[0].model_copy(update={"path": str(train)})]})
    options = sections.get("options", {})
    return config.model_copy(update={"data": data, "options": options})


def go_on(first: Ran, folder: Path, reference: str = URI, **sections) -> Ran:  # type: ignore[no-untyped-def]
    config = next_config(first, folder, reference, **sections)
    return run_pipeline(folder / "run", first.folder, config, store=first.folder / "mlflow.db")


def planned(first: Ran, folder: Path, **sections):  # type: ignore[no-untyped-def]
    """The plan of a training that starts from a version of this store."""
    mlflow.set_tracking_uri(first.tracking_uri)
    config = next_config(first, folder, sections.pop("reference", URI), **sections)
    return make_plan(config, start=fetch_start(first.client, config.start_from, folder / "start_version"))


def started_model(plan, folder: Path) -> PeftModel:  # type: ignore[no-untyped-def]
    model = plan.method.adaptation.apply(
        loading.load_base_model(plan.base), plan.adaptation_options, seed=1, folder=folder
    )
    load_start(model, plan.start.adapter)
    return model.eval()


@torch.inference_mode()
def logits(model) -> torch.Tensor:  # type: ignore[no-untyped-def]
    ids = torch.tensor(with_virtual_tokens(model, [range(3, 40)]), device=model.device)
    return model(input_ids=ids).logits[:, -37:].float()


@pytest.fixture(scope="module")
def first(tmp_path_factory, empty_store) -> Ran:
    folder = tmp_path_factory.mktemp("first")
    return run_pipeline(folder, empty_store, first_config(folder))


@pytest.fixture(scope="module")
def second(first, tmp_path_factory) -> Ran:
    first.client.set_registered_model_alias("bot", "champion", "1")
    return go_on(first, tmp_path_factory.mktemp("second"), "models:/bot@champion")


@pytest.mark.train
def test_result_is_one_adapter_of_the_same_shape(first, second):
    before, after = (load_file(ran.work / "adapter" / "adapter_model.safetensors") for ran in (first, second))
    assert {name: tensor.shape for name, tensor in before.items()} == {n: t.shape for n, t in after.items()}
    assert not all(torch.equal(before[name], after[name]) for name in before)
    configs = [json.loads((ran.work / "adapter" / "adapter_config.json").read_text()) for ran in (first, second)]
    assert configs[0] == configs[1]
    assert second.result["model_uri"] == "models:/bot/2"
    assert second.reload_error() < 1e-4


@pytest.mark.train
def test_lineage_is_told_everywhere(first, second):
    digest = first.run.data.tags["finetune.adapter_digest"]
    expected = {"finetune.start_from": URI, "finetune.start_digest": digest}
    model = second.client.get_logged_model(second.result["model_id"])
    version = second.client.get_model_version("bot", "2")
    for tags in (second.run.data.tags, model.tags, version.tags):
        assert {name: tags[name] for name in expected} == expected
    assert second.run.data.params["start_from"] == URI
    head = f"lora x sft on embedded, started from {URI}"
    assert second.run.data.tags["mlflow.note.content"].startswith(f"**{head}**")
    assert version.description.startswith(head)
    card = json.loads((second.work / "finetune.json").read_text())
    assert card["start_from"] == {"model": URI, "digest": digest}
    assert f"on embedded from {URI}" in next(e["text"] for e in second.events("stage") if e["name"] == "plan")
    reasons = json.loads(second.artifact("finetune/config.json").read_text())["reasons"]
    assert reasons["options.rank"] == f"4: as in {URI}"


@pytest.mark.train
def test_a_new_adapter_has_no_trace_of_a_start(first):
    assert not [name for name in first.run.data.tags if name.startswith("finetune.start")]
    assert not [name for name in first.run.data.params if "start" in name or "default" in name.split(".")[0]]
    assert "start_from" not in json.loads((first.work / "finetune.json").read_text())


@pytest.mark.train
def test_the_record_of_trained_rows_holds_those_of_the_start(first, second, tmp_path):
    before, after = (np.load(ran.artifact("finetune/trained_rows.npy")) for ran in (first, second))
    assert set(before.tolist()) < set(after.tolist())
    assert len(after) == len(before) + len(OTHER_ROWS)
    assert not [
        note for note in json.loads(second.artifact("finetune/data_report.json").read_text())["notes"] if URI in note
    ]
    path = first_config(tmp_path / "seen").data.train[0].path
    config = next_config(first, tmp_path)
    held_out = [config.data.train[0].model_copy(update={"path": path})]
    config = config.model_copy(update={"data": config.data.model_copy(update={"eval": held_out})})
    note = "models:/bot/1 was trained on 24 of the 24 held-out rows, for which the proof is too good"
    assert note in "".join(notes_of(first, config, tmp_path))


@pytest.mark.train
def test_rows_under_another_seed_are_told(first, tmp_path):
    config = next_config(first, tmp_path, training={"seed": 7})
    assert "models:/bot/1 was trained with seed 0" in "".join(notes_of(first, config, tmp_path))


def notes_of(first: Ran, config: RunConfig, folder: Path) -> list[str]:
    """What the plan's stage notes of a run of this config."""
    run_id = first.client.create_run(first.run.info.experiment_id).info.run_id
    (folder / "work").mkdir()
    report = Report(folder / "report.jsonl")
    plan_stage.plan(config, RunContext(run_id, first.tracking_uri, folder / "work"), report)
    events = [json.loads(line) for line in (folder / "report.jsonl").read_text().splitlines()]
    return [event["text"] for event in events if event["event"] == "note"]


KINDS = {
    "lora": {},
    "rslora": {"options": {"rank": 4, "rslora": True, "alpha": 8.0, "target_modules": ["q_proj", "v_proj"]}},
    "dora": {"options": {"rank": 4, "dora": True}},
    "pissa": {"options": {"rank": 4, "init": "pissa"}},
    "olora": {"options": {"rank": 4, "init": "olora"}},
    "ia3": {"adaptation": "ia3", "options": {}, "training": {"learning_rate": 5e-2}},
    "bottleneck": {"adaptation": "bottleneck", "options": {"placement": "pfeiffer", "reduction_factor": 4.0}},
    "full": {"adaptation": "full", "options": {"layers": "last 1"}, "training": {"learning_rate": 1e-2}},
    "qlora": {"adaptation": "qlora", "options": {"rank": 4}, "quantization": "nf4"},
    "prompt": {"adaptation": "prompt", "options": {"num_virtual_tokens": 4}},
    "prefix": {"adaptation": "prefix", "options": {"num_virtual_tokens": 4}},
    "ptuning": {"adaptation": "ptuning", "options": {"num_virtual_tokens": 4}},
}


@pytest.mark.train
@pytest.mark.parametrize("kind", KINDS)
def test_every_adaptation_goes_on_as_it_ended(kind, tmp_path, empty_store):
    sections = {**KINDS[kind]}
    quantization = sections.pop("quantization", None)
    base = str(tiny_base(tmp_path / "base"))
    named = {"base_model": {"name": base, "quantization": quantization}}
    training = {"max_steps": 3, **sections.pop("training", {})}
    config = config_for(tmp_path, base, **named, training=training, **sections)
    first = run_pipeline(tmp_path / "first", empty_store, config)
    plan = planned(first, tmp_path / "next", base=base)
    assert plan.config.adaptation == sections.get("adaptation", "lora")
    assert plan.base.quantization == quantization
    (tmp_path / "scratch").mkdir()
    mlflow.set_tracking_uri(first.tracking_uri)
    version = load_logged(URI).model
    started = started_model(plan, tmp_path / "scratch")
    assert (logits(started) - logits(version)).abs().max() < 1e-6
    with started.disable_adapter():
        assert (logits(started) - logits(version)).abs().max() > 1e-6
    again = go_on(first, tmp_path / "again", base=base, training={"max_steps": 2, "learning_rate": 1e-2})
    shapes = [
        {name: tensor.shape for name, tensor in load_file(ran.work / "adapter" / "adapter_model.safetensors").items()}
        for ran in (first, again)
    ]
    assert shapes[0] == shapes[1]
    assert again.run.data.tags["finetune.serving"] == first.run.data.tags["finetune.serving"]
    assert again.run.data.tags["finetune.adaptation"] == first.run.data.tags["finetune.adaptation"]


@pytest.mark.train
@pytest.mark.parametrize(
    "reference", ["bot", "bot@champion", "models:/bot/1", "runs:/{run_id}", "runs:/{run_id}/model"]
)
def test_references(first, second, reference, tmp_path):
    mlflow.set_tracking_uri(first.tracking_uri)
    start = fetch_start(first.client, reference.format(run_id=first.run_id), tmp_path)
    assert start.digest == first.run.data.tags["finetune.adapter_digest"]
    assert start.uri == (f"models:/{first.result['model_id']}" if reference.startswith("runs:") else URI)
    assert start.version == (None if reference.startswith("runs:") else "1")


@pytest.mark.train
def test_folder_of_a_logged_model(first, tmp_path):
    mlflow.set_tracking_uri(first.tracking_uri)
    folder = mlflow.artifacts.download_artifacts(URI, dst_path=str(tmp_path / "copy"))
    start = fetch_start(first.client, folder, tmp_path / "start")
    assert (start.uri, start.version, start.model_id) == (folder.rstrip("/"), None, None)
    plan = make_plan(next_config(first, tmp_path, folder), start=start)
    assert plan.adaptation_options.rank == 4


@pytest.mark.bad_input
@pytest.mark.train
@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("models:/bot/99", "start_from = models:/bot/99: "),
        ("models:/nobody/1", "start_from = models:/nobody/1: "),
        ("models:/bot@nobody", "start_from = models:/bot@nobody: "),
        ("runs:/0123456789abcdef0123456789abcdef", "no such run on this tracking server"),
        ("runs:/{run_id}/other", "the run's adapter is called bot; fix: runs:/{run_id}"),
        ("/nowhere/at/all", "is not the folder of a logged model: it has no MLmodel"),
        ("hf:some/model", "start_from = 'hf:some/model' is not a valid model name"),
    ],
)
def test_what_does_not_exist_is_refused(first, reference, message, tmp_path):
    mlflow.set_tracking_uri(first.tracking_uri)
    with pytest.raises(ConfigError) as refusal:
        fetch_start(first.client, reference.format(run_id=first.run_id), tmp_path)
    assert message.format(run_id=first.run_id) in str(refusal.value)


@pytest.mark.bad_input
@pytest.mark.train
@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"adaptation": "ia3", "is_adaptation_default": False},
            "is an adapter of lora, and the adaptation of this training is ia3; fix: -P adaptation=lora",
        ),
        ({"options": {"rank": 8}}, "options.rank = 8: the version has 4; fix: leave it out"),
        (
            {"options": {"target_modules": ["q_proj"]}},
            "options.target_modules = ['q_proj']: the version has 'all-linear'",
        ),
        ({"options": {"init": "pissa"}}, "options.init = 'pissa': the version has 'default'"),
        (
            {"options": {"placement": "pfeiffer"}},
            "options.placement = 'pfeiffer': lora, its adaptation, has no such option",
        ),
        (
            {"base_model": {"name": "embedded", "quantization": "nf4"}},
            "base_model.quantization = nf4: the base of the version is not quantised",
        ),
        ({"data": {"chat_template_kwargs": {"eos_token_": 1}}}, "the version was trained with {}; fix: leave it out"),
    ],
)
def test_what_contradicts_the_version_is_refused_with_both_values(first, sections, message, tmp_path):
    with pytest.raises(ConfigError) as refusal:
        planned(first, tmp_path, **sections)
    assert message in str(refusal.value)
    assert URI in str(refusal.value)


@pytest.mark.train
def test_what_repeats_the_version_is_accepted(first, tmp_path):
    plan = planned(
        first, tmp_path, options={"rank": 4, "target_modules": "all-linear", "alpha": "auto", "dropout": 0.1}
    )
    assert (plan.adaptation_options.rank, plan.adaptation_options.dropout) == (4, 0.1)


@pytest.mark.bad_input
@pytest.mark.train
def test_another_base_is_refused(first, tmp_path):
    with pytest.raises(ConfigError) as refusal:
        planned(first, tmp_path, base=str(tiny_base(tmp_path / "base")))
    assert "was trained on embedded (digest " in str(refusal.value)
    assert f"the base of this training is {tmp_path / 'base'} (digest " in str(refusal.value)
    assert "fix: base_model: embedded" in str(refusal.value)


@pytest.mark.bad_input
@pytest.mark.train
def test_another_chat_template_is_refused_and_the_same_is_not(first, tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}")
    with pytest.raises(ConfigError, match="the version answers with another chat template, and keeps it"):
        planned(first, tmp_path / "other", data={"chat_template": str(template)})
    start = planned(first, tmp_path / "plain").start
    template.write_text((start.tokenizer / "chat_template.jinja").read_text())
    plan = planned(first, tmp_path / "same", data={"chat_template": str(template)})
    assert plan.renderer.chat_template == template.read_text()


@pytest.mark.fault
@pytest.mark.train
def test_changed_files_are_refused(first, tmp_path):
    mlflow.set_tracking_uri(first.tracking_uri)
    folder = Path(mlflow.artifacts.download_artifacts(URI, dst_path=str(tmp_path / "copy")))
    weights = folder / "artifacts" / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ReloadError, match="adapter is not the one that was registered"):
        fetch_start(first.client, str(folder), tmp_path / "start")
    shutil.rmtree(folder / "artifacts" / "adapter")
    (folder / "artifacts" / "adapter").symlink_to("/etc")
    with pytest.raises(ReloadError, match="is not a regular folder"):
        fetch_start(first.client, str(folder), tmp_path / "start")


@pytest.mark.train
def test_code_of_the_version_is_not_run(first, tmp_path):
    mlflow.set_tracking_uri(first.tracking_uri)
    folder = Path(mlflow.artifacts.download_artifacts(URI, dst_path=str(tmp_path / "copy")))
    for file in (folder / "pyfunc_loader.py", folder / "code" / "weights_digest.py"):
        file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = next_config(first, tmp_path, str(folder))
    plan = make_plan(config, start=fetch_start(first.client, str(folder), tmp_path / "start"))
    (tmp_path / "scratch").mkdir()
    started_model(plan, tmp_path / "scratch")
    assert not (tmp_path / "ran").exists()


@pytest.mark.bad_input
@pytest.mark.train
def test_an_adapter_of_other_layers_does_not_fit(first, tmp_path):
    plan = planned(first, tmp_path)
    options = plan.adaptation_options.model_copy(update={"target_modules": ["q_proj"]})
    model = load_method("adaptation", "lora").apply(
        loading.load_base_model(plan.base), options, seed=1, folder=tmp_path
    )
    with pytest.raises(ConfigError, match="has other layers than this training's"):
        load_start(model, plan.start.adapter)
    options = plan.adaptation_options.model_copy(update={"rank": 8})
    model = load_method("adaptation", "lora").apply(
        loading.load_base_model(plan.base), options, seed=1, folder=tmp_path
    )
    with pytest.raises(ConfigError, match="does not fit"):
        load_start(model, plan.start.adapter)


@pytest.mark.train
def test_a_training_that_leaves_the_version_as_it_was_is_an_error(first, tmp_path):
    with pytest.raises(TrainingError, match="left the adapter bit for bit at its start"):
        go_on(first, tmp_path, training={"learning_rate": 1e-45, "max_steps": 1, "weight_decay": 0.0})


@pytest.mark.train
def test_an_alias_that_moved_does_not_change_a_resumed_run(first, second, tmp_path):
    from mlflow_finetune_plugin.stages.start import find_start

    config = next_config(first, tmp_path, "models:/bot@champion").model_copy(update={"resume": second.run_id})
    first.client.set_registered_model_alias("bot", "champion", "2")
    try:
        context = RunContext(second.run_id, first.tracking_uri, tmp_path)
        start = find_start(config, context, Report(tmp_path / "report.jsonl"))
        new = find_start(config.model_copy(update={"resume": None}), context, Report(tmp_path / "report.jsonl"))
    finally:
        first.client.set_registered_model_alias("bot", "champion", "1")
    assert (start.uri, new.uri) == (URI, "models:/bot/2")


@pytest.mark.train
def test_the_run_compares_start_and_result_on_the_held_out_rows(first, second):
    """Both runs hold out the same rows, so the start's figures are those of its own proof."""
    alone, continued = first.run.data.metrics, second.run.data.metrics
    for metric in ("exact_match", "perplexity"):
        assert continued[f"eval/start/{metric}"] == pytest.approx(alone[f"eval/adapter/{metric}"], rel=1e-4)
        assert continued[f"eval/gain_over_start_low/{metric}"] <= continued[f"eval/gain_over_start/{metric}"]
    gain = continued["eval/start/perplexity"] - continued["eval/adapter/perplexity"]
    assert continued["eval/gain_over_start/perplexity"] == pytest.approx(gain, abs=1e-6)
    tokens = {side: continued[f"eval/answer_tokens/{side}"] for side in ("base", "start", "adapter")}
    assert tokens["start"] == alone["eval/answer_tokens/adapter"]
    assert tokens["base"] == alone["eval/answer_tokens/base"]
    means = (
        f"generated answers have {tokens['base']:.1f} tokens with the base, {tokens['adapter']:.1f} with the adapter"
    )
    assert means in second.run.data.tags["mlflow.note.content"]
    assert means in second.client.get_model_version("bot", "2").description
    lines = [event["text"] for event in second.events("stage")]
    assert any(f"{tokens['start']:.1f} tokens with {URI}" in line for line in lines)
    before = json.loads(first.artifact("proof/rows.json").read_text())
    table = json.loads(second.artifact("proof/start.json").read_text())
    answers = [row[table["columns"].index("start_answer")] for row in table["data"]]
    assert answers == [row[before["columns"].index("adapter_answer")] for row in before["data"]]
    lines = [event["text"] for event in second.events("stage") if event["name"] == "proof"]
    assert any(URI in line and "exact match" in line for line in lines)
    assert {"eval/start/exact_match"} <= {
        m.key for m in second.client.get_logged_model(second.result["model_id"]).metrics
    }


@pytest.mark.train
def test_the_result_passes_the_checks_of_serving(first, second, tmp_path):
    mlflow.set_tracking_uri(first.tracking_uri)
    version = Fetcher(first.client, AdapterStore(tmp_path / "store")).fetch("bot", "2")
    assert (version.card["serving"], version.rank) == ("vllm", 4)
    before = Fetcher(first.client, AdapterStore(tmp_path / "store")).fetch("bot", "1")
    assert version.tokenizer == before.tokenizer, "the same tokenizer and chat template share an engine"
    assert set(version.target_modules) == set(before.target_modules)
