"""Adapters that vLLM has no layers for, as plain LoRA: measured against the adapter's own reference."""

import json

import numpy as np
import pytest
from peft import PeftModel
from served_models import VersionMaker
from tiny_adapters import load_adapter, load_model

from mlflow_finetune_plugin.errors import ConfigError, ReloadError
from mlflow_finetune_plugin.evaluation.generation import completion_log_probs
from mlflow_finetune_plugin.logged_models.conversion import export_lora
from mlflow_finetune_plugin.logged_models.loading import load_logged

pytestmark = pytest.mark.train


@pytest.fixture
def maker(tmp_path, empty_store, monkeypatch):
    import shutil

    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    return VersionMaker(f"sqlite:///{tmp_path}/mlflow.db")


def log_probs(model, logged):
    probes = logged.reference["probes"]
    ids = [probe["prompt_ids"] for probe in probes], [probe["completion_ids"] for probe in probes]
    return np.concatenate(completion_log_probs(model, *ids, pad_token_id=0))


@pytest.mark.parametrize("kind", ["dora", "ia3", "lora"])
def test_at_full_rank_nothing_is_lost(maker, tmp_path, kind):
    uri = f"models:/bot/{maker.make('bot', seed=3, kind=kind, serving='convertible')}"
    width = maker.plain.config.hidden_size
    export = export_lora(uri, tmp_path / "out", width, max_nats=1e-3)
    assert export.held_share == pytest.approx(1.0, abs=1e-6)
    assert export.max_nats < 1e-3
    logged = load_logged(uri)
    plain = PeftModel.from_pretrained(load_model(maker.base), tmp_path / "out").eval()
    assert np.abs(log_probs(plain, logged) - log_probs(logged.model, logged)).max() < 1e-3
    assert np.abs(log_probs(plain, logged) - log_probs(load_model(maker.base), logged)).max() > 0.01
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["use_dora"], config["r"], config["lora_alpha"]) == ("LORA", False, width, width)
    assert json.loads((tmp_path / "out" / "conversion.json").read_text())["from"] == uri


def test_full_fine_tuning_loses_what_lora_cannot_hold_and_says_so(maker, tmp_path):
    """The test's version has other embeddings, norms and head, too."""
    uri = f"models:/bot/{maker.make('bot', seed=3, kind='full', serving='merge')}"
    with pytest.raises(
        ReloadError, match=r"changed weights are not in it \(.* alone moves a token by .*export --merged"
    ):
        export_lora(uri, tmp_path / "out", 128, max_nats=1e-3)
    export = export_lora(uri, tmp_path / "out", 128, max_nats=50)
    assert export.held_share == pytest.approx(1.0, abs=1e-6)
    assert {"model.embed_tokens.weight", "model.norm.weight", "model.layers.0.input_layernorm.weight"} <= set(
        export.lost
    )
    assert not [name for name in export.lost if "_proj" in name]
    assert export.lost_max_nats == pytest.approx(export.max_nats, rel=1e-3), "at full rank nothing else is lost"
    assert json.loads((tmp_path / "out" / "conversion.json").read_text())["lost"] == list(export.lost)
    again = load_logged(uri)
    recorded = np.concatenate([probe["adapter_log_probs"] for probe in again.reference["probes"]])
    assert np.abs(log_probs(again.model, again) - recorded).max() < 1e-4


def test_full_fine_tuning_of_some_linear_layers_loses_nothing(maker, tmp_path):
    targets = ["model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"]
    uri = f"models:/bot/{maker.make('bot', seed=3, kind='full', serving='merge', target_modules=targets)}"
    export = export_lora(uri, tmp_path / "out", 128, max_nats=1e-3)
    assert (export.layers, export.lost, export.lost_max_nats) == (2, (), None)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == sorted(targets)
    assert load_adapter(maker.base, tmp_path / "out")


def test_the_adapter_it_came_from_is_unchanged_and_a_low_rank_costs_more(maker, tmp_path):
    uri = f"models:/bot/{maker.make('bot', seed=3, kind='dora', serving='convertible')}"
    low = export_lora(uri, tmp_path / "low", 2, max_nats=10)
    high = export_lora(uri, tmp_path / "high", 64, max_nats=10)
    assert low.held_share < high.held_share <= 1
    assert low.mean_nats > high.mean_nats
    again = load_logged(uri)
    told = np.concatenate([probe["adapter_log_probs"] for probe in again.reference["probes"]])
    assert np.abs(log_probs(again.model, again) - told).max() < 1e-4


def test_beyond_the_policy_nothing_is_written(maker, tmp_path):
    uri = f"models:/bot/{maker.make('bot', seed=3, kind='dora', serving='convertible')}"
    with pytest.raises(ReloadError, match=r"the LoRA of rank 1 differs from the adapter by .* fix: "):
        export_lora(uri, tmp_path / "out", 1, max_nats=1e-4)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.part").exists()


def test_what_is_no_change_of_weights_is_refused(maker, tmp_path):
    uri = f"models:/bot/{maker.make('bot', seed=3, kind='bottleneck', serving='transformers')}"
    with pytest.raises(ConfigError, match="changes no weights of linear layers"):
        export_lora(uri, tmp_path / "out", 4)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        export_lora(uri, tmp_path / "full", 4)


def test_plain_lora_loads_where_peft_does(maker, tmp_path):
    uri = f"models:/bot/{maker.make('bot', seed=3, kind='ia3', serving='convertible')}"
    export_lora(uri, tmp_path / "out", 16, max_nats=10)
    assert load_adapter(maker.base, tmp_path / "out")
