"""Full fine-tuning: which weights are trained, in which precision they are saved, and that the base stays as it was."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_bases import tiny_base

from mlflow_finetune_plugin.adaptations import _full_tuner, full
from mlflow_finetune_plugin.adaptations.full import Options
from mlflow_finetune_plugin.base_models import loading
from mlflow_finetune_plugin.base_models.facts import BaseFacts
from mlflow_finetune_plugin.base_models.settings import BaseModelSettings
from mlflow_finetune_plugin.errors import BaseModelError

IDS = torch.arange(3, 43).reshape(2, 20)
LAYER = {
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    "input_layernorm",
    "post_attention_layernorm",
}


def of_both(part: str) -> dict[int, set[str]]:
    return {number: {name for name in LAYER if part in name} for number in (0, 1)}


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("llama"))


def base_model(folder: Path, **settings) -> loading.BaseModel:
    return loading.find_base_model(BaseModelSettings(name=str(folder), **settings), {})


def facts_of(folder: Path) -> BaseFacts:
    return loading.describe(base_model(folder))


def wrapped(folder: Path, *, settings: dict | None = None, **options) -> PeftModel:
    resolved = full.resolve(Options(**options), facts_of(folder), {})
    return full.apply(
        loading.load_base_model(base_model(folder, **(settings or {}))), resolved, seed=0, folder=folder
    ).eval()


def moved(model: PeftModel, size: float = 0.05) -> PeftModel:
    """As if trained: every copy differs from the base."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * size)
    return model


def trained_modules(model: PeftModel) -> set[str]:
    names = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
    return {name.removeprefix("base_model.model.").split(".tuned_")[0].removesuffix(".layer") for name in names}


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits


@pytest.mark.parametrize(
    ("options", "outside", "blocks"),
    [
        ({}, {"model.embed_tokens", "model.norm", "lm_head"}, {0: LAYER, 1: LAYER}),
        ({"embeddings": False}, {"model.norm"}, {0: LAYER, 1: LAYER}),
        ({"layers": "last 1"}, {"model.norm"}, {1: LAYER}),
        ({"layers": "first 1"}, set(), {0: LAYER}),
        ({"layers": "none", "embeddings": True}, {"model.embed_tokens", "lm_head"}, {}),
        ({"weights": "norms"}, {"model.norm"}, of_both("norm")),
        ({"weights": "linear"}, set(), of_both("_proj")),
        ({"layers": "last 1", "weights": "norms"}, {"model.norm"}, {1: {name for name in LAYER if "norm" in name}}),
        (
            {"modules": ["mlp", "embed_tokens"]},
            {"model.embed_tokens"},
            of_both("mlp"),
        ),
    ],
    # sets have another order in each process, and the processes of a run must name tests alike
    ids=["whole", "no embeddings", "last", "first", "embeddings", "norms", "linear", "norms of the last", "modules"],
)
def test_options_choose_what_is_trained(options, outside, blocks, llama):
    model = wrapped(llama, **options)
    inside = {f"model.layers.{number}.{name}" for number, names in blocks.items() for name in names}
    assert trained_modules(model) == outside | inside
    resolved = full.resolve(Options(**options), facts_of(llama), {})
    assert full.resolve(resolved, facts_of(llama), {}) == resolved, "a continued version resolves to itself"


def test_all_weights_are_trained_and_the_base_is_not(llama):
    plain = loading.load_base_model(base_model(llama)).eval()
    model = moved(wrapped(llama))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == sum(p.numel() for p in plain.parameters())
    assert not torch.equal(logits(model), logits(plain))
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(plain))


def test_weights_are_saved_as_the_base_has_them_and_nothing_is_lost(llama, tmp_path):
    """Trained in float32, on a base in bfloat16: the trained model computes with the rounded weights that are saved."""
    half = {"settings": {"dtype": "bfloat16"}}
    model = moved(wrapped(llama, **half))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    full.save(model, Options(), tmp_path / "saved", start=tmp_path)
    saved = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    again = PeftModel.from_pretrained(
        loading.load_base_model(base_model(llama, dtype="bfloat16")), tmp_path / "saved"
    ).eval()
    assert {parameter.dtype for parameter in again.parameters()} == {torch.bfloat16}
    assert torch.equal(logits(again), logits(model))
    served = PeftModel.from_pretrained(
        loading.load_base_model(base_model(llama, dtype="float32")), tmp_path / "saved"
    ).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    assert torch.equal(logits(served), logits(model)), "an engine in float32 has the rounded weights, too"


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_merged_model_is_a_plain_one_with_the_trained_weights(family, tmp_path):
    """Gemma 2 and GPT-2 tie embeddings and head: they are trained once, and stay tied."""
    base = tiny_base(tmp_path / "base", family)
    model = moved(wrapped(base))
    trained, count = logits(model), sum(p.numel() for p in model.parameters() if p.requires_grad)
    merged = model.merge_and_unload(safe_merge=True)
    plain = loading.load_base_model(base_model(base))
    assert sum(p.numel() for p in merged.parameters()) == count
    assert merged.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(logits(merged), trained)
    is_tied = plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
    assert (merged.get_output_embeddings().weight is merged.get_input_embeddings().weight) == is_tied
    assert is_tied == (family != "llama")


def test_merge_is_undone_to_the_last_bit(llama):
    model = moved(wrapped(llama))
    before, trained = {n: p.clone() for n, p in model.named_parameters()}, logits(model)
    model.merge_adapter()
    assert torch.equal(logits(model), trained)
    model.unmerge_adapter()
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert torch.equal(logits(model), trained)


def test_copy_of_the_tuner_from_a_logged_model_trains_and_saves_the_same(llama, tmp_path):
    """Loading a model registers its own copy with PEFT. A training in the same process then uses that one."""
    text = Path(_full_tuner.__file__).read_text()
    assert "mlflow_finetune_plugin" not in text
    (tmp_path / "travelled_tuner.py").write_text(text)
    spec = importlib.util.spec_from_file_location("travelled_tuner", tmp_path / "travelled_tuner.py")
    sys.modules["travelled_tuner"] = travelled = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(travelled)
        model = moved(wrapped(llama, settings={"dtype": "bfloat16"}))
        assert isinstance(model.base_model, travelled.FullModel)
        full.save(model, Options(), tmp_path / "saved", start=tmp_path)
    finally:
        del sys.modules["travelled_tuner"]
        importlib.reload(_full_tuner)
    saved = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    again = PeftModel.from_pretrained(
        loading.load_base_model(base_model(llama, dtype="bfloat16")), tmp_path / "saved"
    ).eval()
    assert torch.equal(logits(again), logits(model))


def test_second_adapter_comes_and_goes(llama):
    """TRL's trainer of RLOO adds one for the reference, and this package removes it."""
    model = moved(wrapped(llama))
    trained = logits(model)
    names = [name for name, _ in model.named_parameters()]
    model.add_adapter("ref", model.peft_config["default"])
    assert torch.equal(logits(model), trained)
    model.set_adapter("ref")
    with model.disable_adapter():
        base = logits(model)
    assert torch.equal(logits(model), base)
    model.set_adapter("default")
    model.delete_adapter("ref")
    assert torch.equal(logits(model), trained)
    assert [name for name, _ in model.named_parameters()] == names


def test_head_is_trained_through_trls_fused_head(llama):
    """It reads the head's ``weight`` and never calls the head."""
    from mlflow_finetune_plugin.internals.trl import add_fused_lm_head

    model = wrapped(llama)
    add_fused_lm_head(model.get_base_model())
    model(input_ids=IDS, labels=IDS, fused_lm_head=True).log_probs.sum().backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"layers": "last 3"}, "options.layers = 'last 3': this base has 2 layers; fix: use a number up to 2, or all"),
        ({"modules": ["mlp"], "layers": "last 1"}, "both choose what is trained; fix: remove one of them"),
        ({"modules": ["no_proj"]}, "options.modules: no_proj matches no module"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, fault, llama):
    with pytest.raises(BaseModelError, match=fault):
        full.resolve(Options(**options), facts_of(llama), {})


def test_a_choice_without_weights_is_refused(llama):
    with pytest.raises(BaseModelError, match="no module of this base has such weights"):
        wrapped(llama, modules=["lm_head"], weights="norms")
