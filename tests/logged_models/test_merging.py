"""The merged folder is a plain model: loaded by transformers alone, it answers as base and adapter did."""

import pytest
from mlflow import set_tracking_uri
from pipeline_runs import config_for, run_pipeline
from safetensors.torch import load_file
from tiny_bases import tiny_base
from transformers import AutoModelForCausalLM, AutoTokenizer

from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.logged_models.merging import export_merged


def trained(tmp_path, empty_store, **sections):
    config = config_for(tmp_path, tiny_base(tmp_path / "base"), **sections)
    ran = run_pipeline(tmp_path / "run", empty_store, config)
    set_tracking_uri(ran.tracking_uri)
    return ran


@pytest.mark.train
@pytest.mark.parametrize(
    ("sections", "tolerance"),
    [
        ({"options": {"rank": 4, "dora": True}}, 1e-4),
        ({"base_model": {"quantization": "nf4"}}, 1e-3),
        ({"base_model": {"quantization": "int8"}}, 0.25),
    ],
    ids=["dora", "nf4", "int8"],
)
def test_merged_model_answers_as_the_adapter_did(tmp_path, empty_store, sections, tolerance):
    ran = trained(tmp_path, empty_store, **sections)
    merged = export_merged(ran.result["model_uri"], tmp_path / "merged")
    assert merged.tokens > 16
    assert merged.max_nats < tolerance
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    assert not [name for name in weights if "lora" in name or "absmax" in name or "SCB" in name]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template
    assert model.generation_config.eos_token_id == ran_stop_tokens(ran)


def ran_stop_tokens(ran):
    import json

    (card,) = ran.work.glob("finetune.json")
    return json.loads(card.read_text())["stop_token_ids"]


def test_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(ConfigError, match="is not empty"):
        export_merged("models:/bot/1", tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep me"


@pytest.mark.train
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_base_with_transposed_layers_is_merged(tmp_path, empty_store, quantization):
    """GPT-2's layers keep their weights as (in, out), and bitsandbytes keeps them as (out, in)."""
    base = tiny_base(tmp_path / "base", "gpt2")
    config = config_for(tmp_path, base, base_model={"name": str(base), "quantization": quantization})
    ran = run_pipeline(tmp_path / "run", empty_store, config)
    set_tracking_uri(ran.tracking_uri)
    merged = export_merged(ran.result["model_uri"], tmp_path / "merged")
    assert merged.max_nats < {"nf4": 1e-3, "int8": 0.25}[quantization]
    AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
