"""IA3: the factors stand where the paper puts them, for fused and stacked layers too."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny_bases import tiny_base

from mlflow_finetune_plugin.adaptations import ia3
from mlflow_finetune_plugin.adaptations.ia3 import Options
from mlflow_finetune_plugin.base_models import loading
from mlflow_finetune_plugin.base_models.facts import BaseFacts
from mlflow_finetune_plugin.base_models.settings import BaseModelSettings
from mlflow_finetune_plugin.errors import BaseModelError

IDS = torch.arange(3, 43).reshape(2, 20)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("llama"))


def found(folder: Path) -> loading.BaseModel:
    return loading.find_base_model(BaseModelSettings(name=str(folder)), {})


def facts_of(folder: Path) -> BaseFacts:
    return loading.describe(found(folder))


def wrapped(folder: Path, **options) -> PeftModel:
    resolved = ia3.resolve(Options(**options), facts_of(folder), {})
    return ia3.apply(loading.load_base_model(found(folder)), resolved, seed=0, folder=folder)


@pytest.mark.parametrize(
    ("family", "key_values", "feedforward", "parameters"),
    [
        # two key-value heads of 8, and the 48 inner activations, in 2 blocks
        ("llama", ["self_attn.k_proj", "self_attn.v_proj"], ["mlp.down_proj"], 2 * (16 + 16 + 48)),
        ("gpt2", ["attn.c_attn"], ["mlp.c_proj"], 2 * (96 + 128)),  # fused: queries too; 4 x 32 inside
        ("gpt_neox", ["attention.query_key_value"], ["mlp.dense_4h_to_h"], 2 * (96 + 48)),
        ("phi3", ["self_attn.qkv_proj"], ["mlp.down_proj"], 2 * (32 + 16 + 16 + 48)),
        ("opt", ["self_attn.k_proj", "self_attn.v_proj"], ["fc2"], 2 * (32 + 32 + 48)),
        ("mixtral", ["self_attn.k_proj", "self_attn.v_proj"], [], 2 * (16 + 16)),
    ],
)
def test_factors_stand_where_the_paper_puts_them(family, key_values, feedforward, parameters, tmp_path):
    folder = tiny_base(tmp_path / "base", family)
    reasons: dict[str, str] = {}
    resolved = ia3.resolve(Options(), facts_of(folder), reasons)
    assert resolved.key_value_modules == key_values
    assert resolved.feedforward_modules == feedforward
    assert ("fused" in reasons["options.key_value_modules"]) is (family in ("gpt2", "gpt_neox", "phi3"))
    assert ("stacked" in reasons["options.feedforward_modules"]) is (family == "mixtral")
    model = ia3.apply(loading.load_base_model(found(folder)), resolved, seed=0, folder=folder)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == parameters


def test_output_follows_the_papers_formula(llama):
    """Keys and values times their factors, the feed-forward's inner activations times theirs, by hand on the plain base."""
    model = wrapped(llama)
    torch.manual_seed(1)
    factors = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
                factors[name.removeprefix("base_model.model.").removesuffix(".ia3_l.default")] = parameter.flatten()
    plain = loading.load_base_model(found(llama)).eval()
    assert len(factors) == 6
    for name, factor in factors.items():
        layer = plain.get_submodule(name)
        if name.endswith("down_proj"):
            layer.register_forward_pre_hook(lambda module, args, factor=factor: (args[0] * factor,))
        else:
            layer.register_forward_hook(lambda module, args, output, factor=factor: output * factor)
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(IDS).logits, plain(IDS).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key_value_modules": ["kproj"]}, r"options.key_value_modules: kproj matches no module.*k_proj"),
        ({"key_value_modules": []}, "an empty list matches no module"),
        ({"feedforward_modules": ["down"]}, r"options.feedforward_modules: down matches no module"),
        ({"feedforward_modules": ["k_proj"]}, "k_proj is in both options.key_value_modules and"),
        ({"key_value_modules": ["lm_head"]}, "lm_head matches no module"),
    ],
    ids=str,
)
def test_what_cannot_be_adapted_is_refused_before_weights_are_read(options, message, llama):
    with pytest.raises(BaseModelError, match=message):
        ia3.resolve(Options(**options), facts_of(llama), {})


def test_layers_may_be_named_and_the_feedforward_left_out(llama):
    model = wrapped(llama, key_value_modules=["v_proj"], feedforward_modules=[])
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * 16


def test_unknown_names_say_what_was_seen_and_how_to_name_them():
    odd = {"h.0.attn.one": (32, 32), "h.0.mlp.two": (32, 48)}
    with pytest.raises(BaseModelError, match=r"keys and values of h\.0.*\(attn\.one\).*options\.key_value_modules"):
        ia3.resolve(Options(), BaseFacts("odd", 32, 128, 1, odd, ("h.0.attn", "h.0.mlp")), {})
    resolved = ia3.resolve(
        Options(key_value_modules=["attn.one"], feedforward_modules=["mlp.two"]), BaseFacts("odd", 32, 128, 1, odd), {}
    )
    assert resolved.key_value_modules == ["attn.one"]


def test_learning_rate_is_far_above_loras():
    assert ia3.learning_rate(BaseFacts("llama", 4096, 2048, 1, {}))[0] == 5e-3
    assert ia3.learning_rate(BaseFacts("llama", 128, 2048, 1, {}))[0] >= 5e-3
