from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from engine_process import EMBEDDED
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_adapters import KINDS, load_adapter, load_model, save_adapter
from tiny_bases import tiny_base
from transformers import PreTrainedModel

from mlflow_finetune_plugin.base_models.loading import BaseModel, load_base_model
from mlflow_finetune_plugin.errors import StoreError
from mlflow_finetune_plugin.serving.transformers_engine import memory
from mlflow_finetune_plugin.serving.transformers_engine.trees import Base, Tree

IDS = [5, 80, 200, 17, 333, 41, 900, 12]


def read(tree: Tree, ids: list[int] = IDS) -> torch.Tensor:
    with torch.inference_mode():
        return tree.start(ids, keep=1)[0]


def pointers(model: torch.nn.Module) -> set[int]:
    return {weights.data_ptr() for weights in model.parameters()}


def quantized(method: str) -> PreTrainedModel:
    base = BaseModel(
        name="embedded",
        folder=EMBEDDED,
        revision=None,
        dtype=torch.float32,
        quantization=method,
        trust_remote_code=False,
    )
    return load_base_model(base)


@pytest.mark.parametrize("kind", KINDS)
def test_tree_says_what_peft_says_and_leaves_the_base_bit_for_bit(kind: str, tmp_path: Path) -> None:
    folder = save_adapter(kind, EMBEDDED, tmp_path / kind)
    model = load_model(EMBEDDED)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    base = Base(model)
    before = read(base.tree)

    tree = base.grow(folder)

    with torch.inference_mode():
        expected = load_adapter(EMBEDDED, folder)(input_ids=torch.tensor([IDS])).logits[0, -1:]
    torch.testing.assert_close(read(tree), expected, rtol=0, atol=1e-5)
    assert (read(tree) - before).abs().max() > 0.1
    assert torch.equal(read(base.tree), before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_adapter_that_does_not_fit_is_refused_before_it_is_loaded(tmp_path: Path, monkeypatch) -> None:
    folder = save_adapter("full", EMBEDDED, tmp_path / "full")
    base = Base(load_model(EMBEDDED))
    size = (folder / "adapter_model.safetensors").stat().st_size
    monkeypatch.setattr(memory, "_free_bytes", lambda device: 2 * size - 1)
    with pytest.raises(
        StoreError, match=r"loading it takes \d+ MiB, and \d+ MiB are free on cpu; fix: serve fewer versions"
    ):
        base.grow(folder)
    monkeypatch.setattr(memory, "_free_bytes", lambda device: 2 * size)
    assert base.grow(folder)


def test_all_trees_hold_the_same_weights_and_keep_them_tied(tmp_path: Path) -> None:
    model = load_model(EMBEDDED)
    base = Base(model)
    tree = base.grow(save_adapter("lora", EMBEDDED, tmp_path / "lora"))
    assert pointers(base.tree.model) == pointers(model)
    assert pointers(model) < pointers(tree.model)
    for grown in (base.tree.model, tree.model):
        assert grown.get_output_embeddings().weight is grown.get_input_embeddings().weight


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_quantized_weights_are_shared_with_their_scales(method: str, tmp_path: Path) -> None:
    folder = save_adapter("lora", EMBEDDED, tmp_path / "lora")
    base = Base(quantized(method))
    before = read(base.tree)
    tree = base.grow(folder)

    with torch.inference_mode():
        expected = PeftModel.from_pretrained(quantized(method), str(folder)).eval()(torch.tensor([IDS])).logits[0, -1:]
    torch.testing.assert_close(read(tree), expected, rtol=0, atol=1e-5)
    assert torch.equal(read(base.tree), before)
    plain = base.tree.model.get_submodule("model.layers.0.self_attn.q_proj")
    adapted = tree.model.get_submodule("model.layers.0.self_attn.q_proj.base_layer")
    assert adapted.weight.data_ptr() == plain.weight.data_ptr()
    if method == "nf4":
        assert adapted.weight.quant_state is plain.weight.quant_state
        assert adapted.quant_state is plain.quant_state
    else:
        assert adapted.state.SCB.data_ptr() == plain.state.SCB.data_ptr()
        assert not tree.may_batch  # its outlier columns would be picked from all rows


def test_adapter_that_brings_embeddings_writes_to_its_own_copy(tmp_path: Path) -> None:
    folder = save_adapter("lora", EMBEDDED, tmp_path / "lora")
    weights = load_file(folder / "adapter_model.safetensors")
    model = load_model(EMBEDDED)
    weights["base_model.model.model.embed_tokens.weight"] = model.get_input_embeddings().weight.detach() * 1.5
    save_file(weights, folder / "adapter_model.safetensors")
    base = Base(model)
    before = read(base.tree)

    tree = base.grow(folder)

    assert torch.equal(read(base.tree), before)
    own = tree.model.get_input_embeddings().weight
    torch.testing.assert_close(own, model.get_input_embeddings().weight * 1.5)
    assert tree.model.get_output_embeddings().weight is own


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_adapter_that_starts_by_changing_the_base_changes_only_its_own(init: str, tmp_path: Path) -> None:
    folder = save_adapter("lora", EMBEDDED, tmp_path / init, init_lora_weights=init)
    base = Base(load_model(EMBEDDED))
    before = read(base.tree)
    tree = base.grow(folder)
    with torch.inference_mode():
        expected = load_adapter(EMBEDDED, folder)(input_ids=torch.tensor([IDS])).logits[0, -1:]
    torch.testing.assert_close(read(tree), expected, rtol=0, atol=1e-3)
    assert torch.equal(read(base.tree), before)


def test_dropped_tree_frees_its_weights(tmp_path: Path) -> None:
    base = Base(load_model(EMBEDDED))
    adapter = save_adapter("lora", EMBEDDED, tmp_path / "lora")
    gc.disable()  # so that the tree stays in the youngest generation, which is collected without all that tests import
    try:
        tree = base.grow(adapter)
        own = weakref.ref(tree.model.get_parameter("model.layers.0.self_attn.q_proj.lora_A.default.weight"))
        assert own() is not None
        del tree
        gc.collect(0)
        assert own() is None
    finally:
        gc.enable()


def test_only_safetensors_are_read(tmp_path: Path) -> None:
    folder = save_adapter("lora", EMBEDDED, tmp_path / "lora")
    weights = load_file(folder / "adapter_model.safetensors")
    torch.save(weights, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors"):
        Base(load_model(EMBEDDED)).grow(folder)


@pytest.mark.parametrize("fault", ["missing", "unknown"])
def test_adapter_whose_weights_do_not_fit_is_not_served_with_fresh_ones(fault: str, tmp_path: Path) -> None:
    folder = save_adapter("lora", EMBEDDED, tmp_path / "lora")
    weights = load_file(folder / "adapter_model.safetensors")
    name = sorted(weights)[0]
    tensor = weights.pop(name) if fault == "missing" else weights[name].clone()
    if fault == "unknown":
        weights[name.replace("layers.0", "layers.99")] = tensor
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(StoreError, match=f"1 weights are {fault}"):
        Base(load_model(EMBEDDED)).grow(folder)


def test_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    other = tiny_base(tmp_path / "other", "llama")
    folder = save_adapter("lora", other, tmp_path / "lora")
    with pytest.raises(StoreError, match="cannot put this adapter on the base"):
        Base(load_model(EMBEDDED)).grow(folder)
