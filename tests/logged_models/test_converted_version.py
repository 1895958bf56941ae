"""A converted adapter as a version of its own, in a real registry; what fails leaves nothing there."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from pipeline_runs import config_for, run_pipeline
from served_models import VersionMaker
from tiny_bases import tiny_base

from mlflow_finetune_plugin.base_models.weights_digest import folder_digest
from mlflow_finetune_plugin.cli import main
from mlflow_finetune_plugin.errors import ConfigError, ReloadError, TrackingError
from mlflow_finetune_plugin.logged_models import converted_version
from mlflow_finetune_plugin.logged_models.converted_version import register_converted
from mlflow_finetune_plugin.logged_models.loading import differences, load_logged
from mlflow_finetune_plugin.serving.versions.adapter_store import AdapterStore
from mlflow_finetune_plugin.serving.versions.fetching import Fetcher
from mlflow_finetune_plugin.store.registry import find_model

pytestmark = pytest.mark.train

RANK = 16


@pytest.fixture
def maker(tmp_path, empty_store, monkeypatch):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    yield VersionMaker(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(before)


@pytest.fixture
def original(maker):
    return find_model(maker.client, f"models:/bot/{maker.make('bot', seed=3, kind='dora', serving='convertible')}")


def state(maker, run_id):
    """All that a conversion could leave at the tracking server."""
    client = maker.client
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()], run_view_type=3)
    models = client.search_logged_models([e.experiment_id for e in client.search_experiments()])
    return {
        "models": sorted(model.model_id for model in models),
        "versions": sorted((v.name, v.version) for v in client.search_model_versions()),
        "registered": sorted((m.name, tuple(m.aliases.items())) for m in client.search_registered_models()),
        "runs": sorted(r.info.run_id for r in runs if r.info.lifecycle_stage == "active"),
        "metrics": client.get_run(run_id).data.metrics,
        "artifacts": [file.path for file in client.list_artifacts(run_id)],
    }


def run_of(maker, found):
    return maker.client.get_logged_model(found.model_id).source_run_id


def test_probes_keep_the_tools_that_are_in_their_prompts(maker):
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}]
    maker.rows = [replace(row, messages=({**row.messages[0], "tools": tools}, *row.messages[1:])) for row in maker.rows]
    number = maker.make("bot", seed=3, kind="dora", serving="convertible")
    register_converted(maker.client, find_model(maker.client, f"models:/bot/{number}"), RANK, max_nats=10)
    first, second = (load_logged(f"models:/bot/{version}").reference["probes"] for version in (number, "2"))
    assert [probe["tools"] for probe in first] == [tools] * len(maker.rows)
    for name in ("messages", "tools"):
        assert [probe.get(name) for probe in second] == [probe[name] for probe in first]


def test_it_is_a_version_beside_the_original(maker, original):
    done = register_converted(maker.client, original, RANK, max_nats=10)
    assert (done.version.uri, done.run_id, done.is_new_run) == ("models:/bot/2", run_of(maker, original), False)
    assert find_model(maker.client, "models:/bot@challenger").uri == "models:/bot/2"
    first, second = load_logged("models:/bot/1"), load_logged("models:/bot/2")
    assert (second.card["adaptation"], second.card["serving"]) == ("lora", "vllm")
    record = second.card["converted_from"]
    assert (record["model"], record["rank"], record["adapter_digest"]) == (
        "models:/bot/1",
        RANK,
        first.card["adapter_digest"],
    )
    assert (record["max_nats"], record["mean_nats"], record["kept"]) == (
        done.export.max_nats,
        done.export.mean_nats,
        done.export.held_share,
    )
    assert {k: first.card[k] for k in ("base_model", "stop_token_ids", "max_length")} == {
        k: second.card[k] for k in ("base_model", "stop_token_ids", "max_length")
    }
    version = maker.client.get_model_version("bot", "2")
    tags = dict(version.tags)
    assert tags["finetune.converted_from"] == "models:/bot/1"
    assert float(tags["finetune.conversion_max_nats"]) == pytest.approx(done.export.max_nats, rel=0.01)
    assert tags["finetune.adapter_digest"] == second.card["adapter_digest"] == folder_digest(second.adapter)
    assert "converted from models:/bot/1" in version.description
    run = maker.client.get_run(done.run_id)
    assert run.data.metrics["conversion/max_nats"] == done.export.max_nats
    logged = maker.client.get_logged_model(find_model(maker.client, done.version.uri).model_id)
    assert logged.experiment_id == run.info.experiment_id
    assert {metric.key for metric in logged.metrics} >= {"conversion/max_nats", "conversion/mean_nats"}
    path = mlflow.artifacts.download_artifacts(run_id=done.run_id, artifact_path="conversions/bot-2/conversion.json")
    assert json.loads(Path(path).read_text()) == record


def test_its_reference_is_its_own(maker, original):
    """Base and probes as before; the adapter's side is what the converted one says, not what the original said."""
    done = register_converted(maker.client, original, RANK, max_nats=10)
    first, second = load_logged(original.uri), load_logged(done.version.uri)
    for before, after in zip(first.reference["probes"], second.reference["probes"], strict=True):
        for key in ("messages", "prompt", "prompt_ids", "completion_ids"):
            assert before[key] == after[key]
        assert after["base_log_probs"] == pytest.approx(before["base_log_probs"], abs=1e-6)
    assert second.reference["precision"] == "float32"
    assert differences(second.model, second).max() < 1e-4
    away = differences(second.model, first)
    assert (float(away.max()), float(away.mean())) == pytest.approx(
        (done.export.max_nats, done.export.mean_nats), abs=1e-5
    )
    assert away.max() > 1e-3
    assert np.abs(differences(first.model, second)).max() > 1e-3


def test_one_engine_serves_both(maker, original, tmp_path):
    """The same base and, to the byte, the same tokenizer."""
    done = register_converted(maker.client, original, RANK, max_nats=10)
    fetcher = Fetcher(maker.client, AdapterStore(tmp_path / "store", None))
    first, second = (fetcher.fetch("bot", number) for number in ("1", done.version.version))
    assert first.engine_key() == second.engine_key()
    assert second.rank == RANK


def test_another_name_and_a_copy(maker, original, tmp_path):
    done = register_converted(maker.client, original, RANK, name="plain", folder=tmp_path / "out", max_nats=10)
    assert done.version.uri == "models:/plain/1"
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"adapter_config.json", "conversion.json"}


def test_a_run_that_is_gone_is_replaced_and_told(maker, original, capsys):
    gone = run_of(maker, original)
    maker.client.delete_run(gone)
    assert main(["export", original.uri, "--rank", str(RANK), "--max-nats", "10", "--register"]) == 0
    said = capsys.readouterr().out
    assert "registered as models:/bot/2 (alias challenger) in new run" in said
    assert f"{RANK}, registered" in said
    assert len(said.splitlines()) == 1
    run = maker.client.get_run(run_of(maker, find_model(maker.client, "models:/bot/2")))
    assert run.info.run_id != gone
    assert run.info.run_id in said
    assert run.info.status == "FINISHED"
    assert run.info.experiment_id == maker.client.get_run(gone).info.experiment_id


def test_beyond_the_policy_nothing_is_registered(maker, original, tmp_path):
    run_id = run_of(maker, original)
    before = state(maker, run_id)
    with pytest.raises(ReloadError, match=r"the LoRA of rank 1 differs from the adapter by .* fix: "):
        register_converted(maker.client, original, 1, name="new", folder=tmp_path / "out", max_nats=1e-4)
    assert state(maker, run_id) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.fault
@pytest.mark.parametrize("moment", ["log_adapter", "load_logged", "check_reload", "register_adapter", "alias"])
@pytest.mark.parametrize("has_run", [True, False])
def test_a_failure_leaves_nothing(maker, original, tmp_path, monkeypatch, moment, has_run):
    run_id = run_of(maker, original)
    if not has_run:
        maker.client.delete_run(run_id)
    before = state(maker, run_id)

    def breaks(*_, **__):
        raise MlflowException("the server is full")

    if moment == "log_adapter":  # in the middle of it: the model exists, its files do not
        monkeypatch.setattr("mlflow.tracking.client.MlflowClient.log_model_artifacts", breaks)
    elif moment == "load_logged":
        real, calls = converted_version.load_logged, []
        monkeypatch.setattr(
            converted_version,
            moment,
            lambda *args, **kw: breaks() if calls else (calls.append(1), real(*args, **kw))[1],
        )
    elif moment == "alias":
        monkeypatch.setattr(type(maker.client), "set_registered_model_alias", breaks)
    else:
        monkeypatch.setattr(converted_version, moment, breaks)
    with pytest.raises(TrackingError, match="the server is full"):
        register_converted(maker.client, original, RANK, name="new", folder=tmp_path / "out", max_nats=10)
    assert state(maker, run_id) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.train
@pytest.mark.parametrize("base", [{}, {"quantization": "nf4"}], ids=["float32", "nf4"])
def test_what_was_trained_is_converted(tmp_path, empty_store, base):
    """A real DoRA run; on a quantised base the version is proven on that base, as it will be served."""
    from mlflow import MlflowClient

    before = mlflow.get_tracking_uri()
    config = config_for(tmp_path, tiny_base(tmp_path / "base"), base_model=base, options={"rank": 4, "dora": True})
    ran = run_pipeline(tmp_path / "run", empty_store, config)
    mlflow.set_tracking_uri(ran.tracking_uri)
    try:
        client = MlflowClient()
        done = register_converted(client, find_model(client, "models:/bot/1"), 32, max_nats=0.05)
        assert (done.version.uri, done.is_new_run) == ("models:/bot/2", False)
        logged = load_logged("models:/bot/2")
        assert differences(logged.model, logged).max() < 1e-4
        record = logged.card["converted_from"]
        assert (record["serving"], record["options"]["dora"], logged.card["options"]) == ("convertible", True, {})
        assert logged.card["base_model"]["quantization"] == base.get("quantization")
        assert logged.card["objective"] == "sft"
    finally:
        mlflow.set_tracking_uri(before)


def test_what_is_no_change_of_weights_is_refused(maker):
    uri = f"models:/bot/{maker.make('bot', seed=3, kind='bottleneck', serving='transformers')}"
    found = find_model(maker.client, uri)
    before = state(maker, run_of(maker, found))
    with pytest.raises(ConfigError, match="changes no weights of linear layers"):
        register_converted(maker.client, found, 4)
    assert state(maker, run_of(maker, found)) == before


def test_a_logged_model_needs_a_name(maker, original):
    with pytest.raises(ConfigError, match="belongs to no registered model; fix: --register NAME"):
        register_converted(maker.client, find_model(maker.client, f"models:/{original.model_id}"), RANK)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing to export; fix: --merged DIR"),
        (("--merged", "d", "--register"), "--register cannot be combined with --merged"),
    ],
)
def test_the_command_refuses_what_makes_no_sense(maker, capsys, arguments, said):
    assert main(["export", "models:/bot/1", *arguments]) == 2
    assert said in capsys.readouterr().err
