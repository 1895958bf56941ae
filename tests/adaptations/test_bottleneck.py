"""Bottleneck adapters: the papers' formula at the papers' places, PEFT's own life cycle, and clear refusals."""

import importlib.util
import json
import sys
from pathlib import Path

import peft
import pytest
import torch
from peft import PeftModel
from tiny_bases import tiny_base

from mlflow_finetune_plugin.adaptations import _bottleneck_tuner, bottleneck
from mlflow_finetune_plugin.adaptations.bottleneck import Options
from mlflow_finetune_plugin.base_models import loading
from mlflow_finetune_plugin.base_models.facts import BaseFacts
from mlflow_finetune_plugin.base_models.settings import BaseModelSettings
from mlflow_finetune_plugin.errors import BaseModelError

IDS = torch.arange(3, 43).reshape(2, 20)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("llama"))


def found(folder: Path, **settings) -> loading.BaseModel:
    return loading.find_base_model(BaseModelSettings(name=str(folder), **settings), {})


def facts_of(folder: Path) -> BaseFacts:
    return loading.describe(found(folder))


def wrapped(folder: Path, *, settings: dict | None = None, **options) -> PeftModel:
    resolved = bottleneck.resolve(Options(**options), facts_of(folder), {})
    return bottleneck.apply(loading.load_base_model(found(folder, **(settings or {}))), resolved, seed=0, folder=folder)


def moved(model: PeftModel) -> PeftModel:
    """As if trained: every adapter weight is something."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def adapted_names(model: PeftModel) -> set[str]:
    return {n for n, m in model.get_base_model().named_modules() if isinstance(m, _bottleneck_tuner.BottleneckLayer)}


def test_peft_takes_the_method_into_its_three_mappings():
    """The contract with PEFT that the pin below 0.22 stands for: what the three mappings are keyed and used by."""
    assert peft.__version__.startswith("0.21.")
    from peft import mapping

    for name in ("PEFT_TYPE_TO_CONFIG_MAPPING", "PEFT_TYPE_TO_TUNER_MAPPING", "PEFT_TYPE_TO_PREFIX_MAPPING"):
        assert "BOTTLENECK" in getattr(mapping, name)
    assert "BOTTLENECK" not in list(peft.PeftType)  # if PEFT ever brings its own, ours must go
    from peft.utils import register_peft_method

    with pytest.raises(ValueError, match="Unknown PEFT type"):
        register_peft_method(name="bottleneck", config_cls=peft.PeftConfig, model_cls=object)


def test_module_that_travels_stands_alone(llama, tmp_path):
    """A copy under another name, as from a model's code folder: it loads the same adapter."""
    model = moved(wrapped(llama))
    model.save_pretrained(tmp_path / "adapter")
    with torch.inference_mode():
        said = model(IDS).logits
    text = Path(_bottleneck_tuner.__file__).read_text()
    assert "mlflow_finetune_plugin" not in text
    (tmp_path / "travelled_tuner.py").write_text(text)
    spec = importlib.util.spec_from_file_location("travelled_tuner", tmp_path / "travelled_tuner.py")
    sys.modules["travelled_tuner"] = travelled = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(travelled)
        again = PeftModel.from_pretrained(loading.load_base_model(found(llama)), tmp_path / "adapter").eval()
        assert isinstance(again.peft_config["default"], travelled.BottleneckConfig)
        with torch.inference_mode():
            assert torch.equal(again(IDS).logits, said)
    finally:
        del sys.modules["travelled_tuner"]
        importlib.reload(_bottleneck_tuner)


@pytest.mark.parametrize(
    ("placement", "places"),
    [("houlsby", {"self_attn", "mlp"}), ("pfeiffer", {"mlp"})],
)
def test_output_follows_the_papers_formula(placement, places, llama):
    """x + up(relu(down(x))) behind the module and before the residual, recomputed by hand on the plain base."""
    model = moved(wrapped(llama, placement=placement))
    assert adapted_names(model) == {f"model.layers.{i}.{place}" for i in range(2) for place in places}
    weights = dict(model.named_parameters())
    plain = loading.load_base_model(found(llama)).eval()

    def by_hand(name):
        def hook(module, args, output):
            x = output[0] if isinstance(output, tuple) else output
            prefix = f"base_model.model.{name}.bottleneck_"
            down, up = (
                (weights[f"{prefix}{part}.default.weight"], weights[f"{prefix}{part}.default.bias"])
                for part in ("down", "up")
            )
            y = x + torch.relu(x @ down[0].T + down[1]) @ up[0].T + up[1]
            return (y, *output[1:]) if isinstance(output, tuple) else y

        return hook

    for name in adapted_names(model):
        plain.get_submodule(name).register_forward_hook(by_hand(name))
    with torch.inference_mode():
        torch.testing.assert_close(model(IDS).logits, plain(IDS).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("factor", "size"), [(4.0, 8), (16.0, 2), (32.0, 1), (1.0, 32), (5.0, 6)])
def test_parameters_follow_the_formula(factor, size, llama):
    model = wrapped(llama, reduction_factor=factor)
    trainable = [p for p in model.parameters() if p.requires_grad]
    each = 2 * 32 * size + 32 + size  # down, up and their biases
    assert sum(p.numel() for p in trainable) == 4 * each
    saved = model.peft_config["default"]
    assert (saved.bottleneck_size, saved.hidden_size) == (size, 32)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh", "sigmoid", "leaky_relu"])
def test_activation_survives_saving(activation, llama, tmp_path):
    model = moved(wrapped(llama, activation=activation))
    bottleneck.save(model, Options(), tmp_path / "adapter", start=tmp_path)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["activation"] == activation
    again = PeftModel.from_pretrained(loading.load_base_model(found(llama)), tmp_path / "adapter").eval()
    with torch.inference_mode():
        assert torch.equal(again(IDS).logits, model(IDS).logits)
        if activation != "relu":
            assert not torch.equal(model(IDS).logits, moved(wrapped(llama)).eval()(IDS).logits)


def test_adapters_are_switched_added_and_taken_off_as_pefts_own(llama, tmp_path):
    model = moved(wrapped(llama))
    base = loading.load_base_model(found(llama)).eval()
    with torch.inference_mode():
        first, alone = model(IDS).logits, base(IDS).logits
        model.save_pretrained(tmp_path / "first")
        model.load_adapter(tmp_path / "first", "second")
        model.set_adapter("second")
        assert torch.equal(model(IDS).logits, first)
        model.add_adapter("third", bottleneck_config(model))
        model.set_adapter("third")
        assert torch.equal(model(IDS).logits, alone)
        model.delete_adapter("third")
        with model.disable_adapter():
            assert torch.equal(model(IDS).logits, alone)
        assert not hasattr(model.base_model, "merge_and_unload")
        with pytest.raises(ValueError, match="cannot be merged"):
            model.merge_adapter()
        assert torch.equal(model.unload()(IDS).logits, alone)


def bottleneck_config(model: PeftModel):
    config = model.peft_config["default"]
    return type(config)(
        target_modules=list(config.target_modules),
        hidden_size=config.hidden_size,
        bottleneck_size=config.bottleneck_size,
        task_type="CAUSAL_LM",
    )


@pytest.mark.parametrize(
    "settings", [{"dtype": "bfloat16"}, {"quantization": "nf4"}, {"quantization": "int8"}], ids=str
)
def test_base_of_any_precision_trains_its_adapters_in_float32(settings, llama, tmp_path):
    model = wrapped(llama, settings=settings)
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trainable} == {torch.float32}
    first = model(IDS, labels=IDS).loss
    first.backward()
    assert all(p.grad is not None for p in trainable)
    torch.optim.Adam(trainable, lr=1e-2).step()
    model.eval()
    with torch.inference_mode():
        trained = model(IDS, labels=IDS)
    assert trained.loss < first
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(loading.load_base_model(found(llama, **settings)), tmp_path / "adapter").eval()
    with torch.inference_mode():
        assert torch.equal(again(IDS).logits, trained.logits)


def test_gradients_reach_every_adapter_under_checkpointing(llama):
    model = moved(wrapped(llama)).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model(IDS, labels=IDS).loss.backward()
    with_checkpoints = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    plain = moved(wrapped(llama)).train()
    plain(IDS, labels=IDS).loss.backward()
    for one, two in zip(with_checkpoints, [p.grad for p in plain.parameters() if p.requires_grad], strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=0)


def test_auto_values_come_with_reasons(llama):
    reasons: dict[str, str] = {}
    resolved = bottleneck.resolve(Options(), facts_of(llama), reasons)
    assert resolved.reduction_factor == 1.0  # a bottleneck of 32 in hidden size 32
    assert resolved.after_modules == ["mlp", "self_attn"]
    assert reasons["options.reduction_factor"].startswith("1.0: ")
    assert "2 blocks" in reasons["options.after_modules"]
    wide = BaseFacts("llama", 4096, 2048, 1, {"a": (4096, 4096)})
    assert bottleneck.resolve(Options(after_modules=["a"]), wide, {}).reduction_factor == 16.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction_factor": 33.0}, "is above the hidden size 32, so no bottleneck remains; fix: use at most 32"),
        ({"after_modules": ["mpl"]}, "mpl matches no module.*mlp"),
        ({"after_modules": []}, "an empty list matches no module"),
        ({"after_modules": ["lm_head"]}, "lm_head matches no module"),
        ({"after_modules": ["k_proj"]}, r"k_proj \(16, 32\) does not output the hidden size 32"),
    ],
    ids=str,
)
def test_what_cannot_be_adapted_is_refused_before_weights_are_read(options, message, tmp_path):
    folder = tiny_base(tmp_path / "base")
    facts = facts_of(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(BaseModelError, match=message):
        bottleneck.resolve(Options(**options), facts, {})


def test_modules_may_be_named(llama):
    model = wrapped(llama, after_modules=["layers.1.mlp", "o_proj"])
    assert adapted_names(model) == {
        "model.layers.1.mlp",
        "model.layers.0.self_attn.o_proj",
        "model.layers.1.self_attn.o_proj",
    }
    moved(model)(IDS)


def test_family_that_adds_the_residual_inside_is_refused():
    base = BaseFacts("bloom", 32, 128, 1, {"h.0.self_attention.q": (32, 32), "h.0.mlp.w": (32, 32)})
    with pytest.raises(BaseModelError, match=r"adds the residual inside.*after_modules"):
        bottleneck.resolve(Options(), base, {})
