"""What an adapter says in the precisions of serving: told by the weights as an engine casts them, and nothing is left cast."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from tiny_adapters import load_model, save_adapter
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from mlflow_finetune_plugin.base_models.files import EMBEDDED_FOLDER
from mlflow_finetune_plugin.base_models.loading import keep_4bit_layout
from mlflow_finetune_plugin.evaluation.generation import completion_log_probs
from mlflow_finetune_plugin.evaluation.results import EvalRow
from mlflow_finetune_plugin.logged_models.precisions import served_as

PROMPTS = ((1, 40, 41, 42, 9, 300), (1, 7, 8), (1, 200, 201, 202, 203, 204, 205, 206))
ROWS = [EvalRow((), prompt, (11, 12, 13), "", "", "", number) for number, prompt in enumerate(PROMPTS)]


@pytest.fixture(params=["lora", "dora", "ia3", "bottleneck", "full"])
def model(request, tmp_path) -> PeftModel:
    folder = save_adapter(request.param, EMBEDDED_FOLDER, tmp_path / "adapter", seed=3)
    loaded = PeftModel.from_pretrained(load_model(EMBEDDED_FOLDER), str(folder), is_trainable=True)
    return loaded.eval()


def _says(model: torch.nn.Module) -> list[np.ndarray]:
    return completion_log_probs(model, [r.prompt_ids for r in ROWS], [r.completion_ids for r in ROWS], pad_token_id=0)


def _loaded_in_half(folder: Path) -> PeftModel:
    """As an engine has it: read in bfloat16, base and adapter."""
    base = AutoModelForCausalLM.from_pretrained(EMBEDDED_FOLDER, dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(base, str(folder), autocast_adapter_dtype=False).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return model


def _state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _assert_unchanged(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(after[name].dtype == before[name].dtype and torch.equal(after[name], before[name]) for name in before)


def test_a_trained_model_is_cast_not_the_one_that_its_head_holds(tmp_path):
    """TRL's fused head keeps the forward of the model that it was put on: of a copy, too, it would run the original."""
    from trl.trainer.utils import add_fused_lm_head

    folder = save_adapter("lora", EMBEDDED_FOLDER, tmp_path / "adapter", seed=3)
    base = load_model(EMBEDDED_FOLDER)
    add_fused_lm_head(base)
    trained = PeftModel.from_pretrained(base, str(folder), is_trainable=True).eval()
    before, said = _state(trained), _says(trained)
    found = served_as(trained, ROWS, "bfloat16", trained=said, pad_token_id=0, max_gap=0.5)
    half = _loaded_in_half(folder)
    assert all(np.array_equal(a, b) for a, b in zip(found.adapter, _says(half), strict=True))
    with half.disable_adapter():
        assert all(np.array_equal(a, b) for a, b in zip(found.base, _says(half), strict=True))
    assert found.gap > 0
    _assert_unchanged(trained, before)
    assert all(np.array_equal(a, b) for a, b in zip(_says(trained), said, strict=True))
    assert trained.get_base_model().__dict__["forward"] is base.__dict__["forward"]


def test_the_own_precision_is_what_was_trained(model):
    before, trained = _state(model), _says(model)
    found = served_as(model, ROWS, "float32", trained=trained, pad_token_id=0, max_gap=0.5)
    assert found.gap == 0
    assert 0 <= found.noise < 1e-4
    assert all(np.array_equal(a, b) for a, b in zip(found.adapter, trained, strict=True))
    assert max(float(np.abs(a - b).max()) for a, b in zip(found.adapter, found.base, strict=True)) > 0.01
    _assert_unchanged(model, before)


def test_another_precision_is_told_as_if_loaded_in_it(model, tmp_path):
    before, trained = _state(model), _says(model)
    expected = _says(_loaded_in_half(tmp_path / "adapter"))
    found = served_as(model, ROWS, "bfloat16", trained=trained, pad_token_id=0, max_gap=0.5)
    assert all(np.array_equal(a, b) for a, b in zip(found.adapter, expected, strict=True))
    assert 1e-4 < found.gap < 3
    assert found.gap == max(float(np.abs(a - b).max()) for a, b in zip(expected, trained, strict=True))
    _assert_unchanged(model, before)


def test_a_float32_adapter_on_a_half_base_is_told_as_an_engine_holds_it(model, tmp_path):
    """Training's mix of precisions is not what an engine has: all of it in the base's."""
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    model.get_base_model().config.dtype = torch.bfloat16
    before, mixed = _state(model), _says(model)
    found = served_as(model, ROWS, "bfloat16", trained=mixed, pad_token_id=0, max_gap=0.5)
    expected = _says(_loaded_in_half(tmp_path / "adapter"))
    assert all(np.array_equal(a, b) for a, b in zip(found.adapter, expected, strict=True))
    rounds_in_training = model.peft_config["default"].peft_type == "FULL"
    assert found.gap == 0 if rounds_in_training else found.gap > 0
    _assert_unchanged(model, before)


def test_a_quantised_base_stays_quantised(tmp_path):
    folder = save_adapter("lora", EMBEDDED_FOLDER, tmp_path / "adapter", seed=3)
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(EMBEDDED_FOLDER, quantization_config=settings, dtype=torch.float32)
    keep_4bit_layout(base)
    model = PeftModel.from_pretrained(base, str(folder), is_trainable=True).eval()
    before, trained = _state(model), _says(model)
    found = served_as(model, ROWS, "float32+nf4", trained=trained, pad_token_id=0, max_gap=0.5)
    assert found.gap < 1e-4
    assert found.to_dict()["noise"] == found.noise
    _assert_unchanged(model, before)
