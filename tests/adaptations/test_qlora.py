"""QLoRA: the base is quantised without being asked, seen by everyone, and LoRA's options stay what they are."""

import json

import pytest
import torch
from pipeline_runs import config_for, run_pipeline
from tiny_bases import tiny_base
from transformers import AutoModelForCausalLM

from mlflow_finetune_plugin.adaptations import lora, qlora
from mlflow_finetune_plugin.base_models import loading
from mlflow_finetune_plugin.base_models.facts import BaseFacts
from mlflow_finetune_plugin.base_models.settings import BaseModelSettings
from mlflow_finetune_plugin.config.run_config import load_config
from mlflow_finetune_plugin.errors import BaseModelError, ConfigError, MissingExtraError
from mlflow_finetune_plugin.planning.preflight import check_before_spend


def config(tmp_path, entry_point="qlora", **overrides: str):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    return load_config(tmp_path, entry_point, {"data": "rows.jsonl", **overrides}, caller=tmp_path)


@pytest.mark.parametrize(
    ("entry_point", "overrides", "expected"),
    [
        ("qlora", {}, "nf4"),
        ("qlora", {"quantization": "int8"}, "int8"),
        ("qlora", {"quantization": "nf4"}, "nf4"),
        ("qlora", {"base_model": "some/model", "dtype": "bfloat16"}, "nf4"),
        ("lora", {"adaptation": "qlora"}, "nf4"),
        ("qlora", {"adaptation": "lora"}, None),
        ("lora", {}, None),
        ("lora", {"quantization": "nf4"}, "nf4"),
        ("adapters", {"quantization": "int8"}, "int8"),
    ],
    ids=str,
)
def test_quantization_is_decided_where_the_config_is_made(entry_point, overrides, expected, tmp_path):
    found = config(tmp_path, entry_point, **overrides)
    assert found.base_model.quantization == expected
    again = type(found).model_validate(json.loads(json.dumps(found.model_dump(mode="json", by_alias=True))))
    assert again.base_model == found.base_model


def test_qlora_without_quantisation_is_a_contradiction(tmp_path):
    (tmp_path / "finetune.yaml").write_text("base_model: {quantization: null}\n")
    with pytest.raises(ConfigError, match=r"finetune\.yaml:1: base_model\.quantization = None.*adaptation=lora"):
        config(tmp_path)
    assert config(tmp_path, "lora").base_model.quantization is None


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_start_that_changes_the_base_is_refused_before_any_spend(init, tmp_path):
    with pytest.raises(ConfigError, match="expected default, gaussian, orthogonal"):
        config(tmp_path, init=init)
    assert config(tmp_path, "lora", init=init)


def test_missing_bitsandbytes_is_told_before_any_spend(tmp_path, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else real(name, *a)
    )
    with pytest.raises(MissingExtraError, match="bitsandbytes"):
        check_before_spend(config(tmp_path))
    check_before_spend(config(tmp_path, "lora"))


@pytest.mark.train
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_run_trains_on_the_quantised_base_and_says_so(quantization, tmp_path, empty_store):
    base = tiny_base(tmp_path / "base", "qwen3")
    sections = {
        "adaptation": "qlora",
        "base_model": {"name": str(base), "quantization": quantization},
        "training": {"save_steps": None},
        "options": {"dora": quantization == "nf4", "rslora": True, "init": "gaussian"},
    }
    ran = run_pipeline(tmp_path / "run", empty_store, config_for(tmp_path, base, **sections))
    assert ran.reload_error() < 1e-5
    assert ran.run.data.params["base_model.quantization"] == quantization
    card = json.loads((ran.work / "finetune.json").read_text())
    assert card["base_model"]["quantization"] == quantization
    assert card["adaptation"] == "qlora"
    reasons = json.loads(ran.artifact("finetune/config.json").read_text())["reasons"]
    assert ("base_model.quantization" in reasons) is (quantization == "nf4")
    assert f"float32+{quantization}" in next(e["text"] for e in ran.events("stage") if e["name"] == "plan")
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    held = loading.load_base_model(
        loading.find_base_model(BaseModelSettings(name=str(base), quantization=quantization), {})
    ).eval()
    ids = torch.arange(3, 40).reshape(1, -1)
    with torch.inference_mode():
        difference = (plain(ids).logits - held(ids).logits).abs().max()
    assert 0 < difference < 5  # quantised for real, and still the same model


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has the backward pass")
def test_dora_on_int8_is_refused_on_a_cpu(tmp_path):
    found = loading.find_base_model(BaseModelSettings(name=str(tiny_base(tmp_path / "base")), quantization="int8"), {})
    options = qlora.resolve(qlora.Options(rank=4, dora=True), loading.describe(found), {})
    with pytest.raises(BaseModelError, match="int8 base"):
        qlora.apply(loading.load_base_model(found), options, seed=0, folder=tmp_path)


def test_options_are_loras_but_for_the_starts():
    assert set(qlora.Options.model_fields) == set(lora.Options.model_fields)
    for name, info in lora.Options.model_fields.items():
        assert qlora.Options.model_fields[name].default == info.default
        if name != "init":
            assert qlora.Options.model_fields[name].annotation == info.annotation


@pytest.mark.parametrize(
    ("hidden", "parameters", "rate"),
    [(4096, 7e9, 2e-4), (5120, 13e9, 2e-4), (6656, 33e9, 1e-4), (8192, 65e9, 1e-4), (128, 1e6, 2e-3)],
)
def test_learning_rate_is_the_papers(hidden, parameters, rate):
    found, why = qlora.learning_rate(BaseFacts("llama", hidden, 2048, int(parameters), {}))
    assert found == rate
    assert why
