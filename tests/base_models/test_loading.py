"""The base: what is said before loading equals what is loaded, and what is broken is one clear error."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_bases import FAMILIES, tiny_base
from transformers.pytorch_utils import Conv1D

from mlflow_finetune_plugin.base_models import loading
from mlflow_finetune_plugin.base_models.settings import BaseModelSettings
from mlflow_finetune_plugin.errors import BaseModelError
from mlflow_finetune_plugin.internals.transformers import supports_sdpa
from mlflow_finetune_plugin.logged_models import pyfunc_loader


def find(folder: Path | str, **settings: object) -> loading.BaseModel:
    return loading.find_base_model(BaseModelSettings(name=str(folder), **settings), {})


@pytest.fixture
def llama(tmp_path) -> Path:
    return tiny_base(tmp_path / "llama")


@pytest.mark.parametrize("family", [*FAMILIES, "embedded"])
def test_description_on_meta_equals_the_loaded_model(family, tmp_path):
    base = find("embedded" if family == "embedded" else tiny_base(tmp_path / "base", family))
    facts = loading.describe(base)
    model = loading.load_base_model(base)
    head = model.get_output_embeddings()
    loaded = {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head
    }
    assert facts.linear_shapes == loaded
    assert len(loaded) >= 4
    assert facts.parameters == sum(p.numel() for p in model.parameters())
    assert facts.hidden_size == model.config.hidden_size
    assert facts.context_length == (512 if family == "embedded" else 128)
    assert model.get_submodule(facts.head) is head
    assert set(facts.other_modules) == {name for name, _ in model.named_modules() if name} - set(loaded)
    assert facts.has_stacked_experts is (family in ("qwen3_moe", "mixtral", "glm4_moe", "gpt_oss"))
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_describing_reads_no_weight(llama):
    (llama / "model.safetensors").unlink()
    base = loading.BaseModel("x", llama, None, torch.float32, None, False)
    assert loading.describe(base).hidden_size == 32


@pytest.mark.parametrize(
    ("stored", "wanted", "dtype", "precision"),
    [
        (torch.float32, "auto", torch.float32, "float32"),
        (torch.bfloat16, "auto", torch.float32, "float32"),
        (torch.bfloat16, "bfloat16", torch.bfloat16, "bfloat16"),
        (torch.float32, "float16", torch.float16, "float16"),
        (torch.float16, "float32", torch.float32, "float32"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="auto is another choice on a GPU")
def test_precision(stored, wanted, dtype, precision, tmp_path):
    folder = tiny_base(tmp_path / "base", dtype=stored)
    reasons: dict[str, str] = {}
    base = loading.find_base_model(BaseModelSettings(name=str(folder), dtype=wanted), reasons)
    assert (base.dtype, base.precision) == (dtype, precision)
    assert ("base_model.dtype" in reasons) == (wanted == "auto")
    assert {p.dtype for p in loading.load_base_model(base).parameters()} == {dtype}


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantised_layers_are_quantised(quantization, llama):
    base = find(llama, quantization=quantization)
    assert base.precision == f"float32+{quantization}"
    model = loading.load_base_model(base)
    layer = model.model.layers[0].self_attn.q_proj
    assert layer.weight.dtype == (torch.uint8 if quantization == "nf4" else torch.int8)
    assert model.lm_head.weight.dtype == torch.float32


def test_evaluating_a_4bit_base_leaves_its_layers_trainable(llama):
    """On a CPU with AVX512-BF16 bitsandbytes repacks layers at the first inference; those have no backward pass."""
    model = loading.load_base_model(find(llama, quantization="nf4"))
    ids = torch.arange(3, 19)[None]
    with torch.inference_mode():
        before = model.eval()(ids).logits
    embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
    logits = model.train()(inputs_embeds=embeddings).logits
    torch.testing.assert_close(logits.detach(), before, atol=1e-5, rtol=0)
    layer = model.model.layers[0].mlp.down_proj
    hidden = torch.randn(1, 5, layer.in_features, requires_grad=True)
    layer(hidden).sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.abs().sum() > 0


def test_missing_weights_are_named(llama):
    weights = load_file(llama / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, llama / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=r"1 weights are missing.*layers\.1\.mlp\.down_proj"):
        loading.load_base_model(find(llama))


def test_weights_of_another_shape_are_refused(llama):
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**config, "intermediate_size": 40}))
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        loading.load_base_model(find(llama))


def test_unknown_architecture_is_refused(llama):
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**config, "model_type": "martian"}))
    with pytest.raises(BaseModelError, match="martian"):
        loading.describe(find(llama))


def test_broken_tokenizer_is_refused(llama):
    (llama / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(BaseModelError, match="the tokenizer cannot be loaded"):
        loading.load_tokenizer(find(llama))


def test_missing_padding_token_becomes_the_end_token(llama):
    config = json.loads((llama / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (llama / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = loading.load_tokenizer(find(llama))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_tied_embeddings_count_once(tmp_path):
    tied = loading.describe(find(tiny_base(tmp_path / "tied", tie_word_embeddings=True)))
    apart = loading.describe(find(tiny_base(tmp_path / "apart", tie_word_embeddings=False)))
    assert apart.parameters - tied.parameters == 300 * 32


def test_hub_name_without_network_is_one_clear_error():
    with pytest.raises(BaseModelError, match="no such folder here"):
        find("nobody/no-such-model-here")


def test_copy_has_the_same_digest_and_a_changed_byte_another(llama, tmp_path):
    from mlflow_finetune_plugin.base_models.weights_digest import base_digest

    copy = Path(shutil.copytree(llama, tmp_path / "copy"))
    assert base_digest(copy) == base_digest(llama)
    (copy / "README.md").write_text("notes do not count")
    assert base_digest(copy) == base_digest(llama)
    raw = bytearray((copy / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (copy / "model.safetensors").write_bytes(raw)
    assert base_digest(copy) != base_digest(llama)


def test_soft_capping_is_computed_or_the_kernel_refused(tmp_path):
    folder = tiny_base(tmp_path / "gemma2", "gemma2", attn_logit_softcapping=2.0)
    base = find(folder)
    assert base.attn_implementation == "eager"
    with pytest.raises(BaseModelError, match="soft capping, which would change the model; fix: use eager"):
        find(folder, attn_implementation="sdpa")
    ids = torch.arange(10, 30)[None]
    with torch.inference_mode():
        capped = loading.load_base_model(base)(ids).logits
        model = loading.load_base_model(base)
        for layer in model.model.layers:
            layer.self_attn.attn_logit_softcapping = None
        uncapped = model(ids).logits
    assert (capped - uncapped).abs().max() > 0.01


def test_kernel_is_what_the_model_is_loaded_with(llama):
    assert loading.load_base_model(find(llama)).config._attn_implementation == "sdpa"
    eager = find(llama, attn_implementation="eager")
    assert loading.load_base_model(eager).config._attn_implementation == "eager"
    with pytest.raises(BaseModelError, match="needs a CUDA GPU; fix: use auto"):
        find(llama, attn_implementation="flash_attention_2")


@pytest.mark.parametrize(("family", "kernel"), [("llama", "sdpa"), ("gemma2", "eager")])
def test_model_trained_with_a_flash_kernel_loads_without_it(family, kernel, tmp_path):
    folder = tiny_base(tmp_path / "base", family)
    card = {"dtype": "float32", "trust_remote_code": False, "quantization": None}
    model = pyfunc_loader._load_base(folder, {**card, "attn_implementation": "flash_attention_2"}, scores=False)
    assert model.config._attn_implementation == kernel
    default = "sdpa" if supports_sdpa(type(model)) else "eager"  # Transformers 5.23 has no sdpa for Gemma 2
    assert (
        pyfunc_loader._load_base(folder, card, scores=False).config._attn_implementation == default
    )  # as models before had it
