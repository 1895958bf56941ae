"""The trace against what the same model really allocates, op by op."""

import random
from pathlib import Path

import pytest
import torch
from tiny_bases import FAMILIES, tiny_base

from mlflow_finetune_plugin.base_models.facts import Reasons
from mlflow_finetune_plugin.base_models.loading import describe, find_base_model
from mlflow_finetune_plugin.base_models.settings import BaseModelSettings
from mlflow_finetune_plugin.methods import load_method
from mlflow_finetune_plugin.planning.step_trace import AdaptedModel, MicroBatch, UntraceableError, adapted_model

PACKED = MicroBatch(rows=4, row_tokens=16, scored=8, packs=True, loss="logits")
# families whose steps differ in kind, for the quick tier: rotary positions, transposed layers, experts, tied embeddings, a dense
# layer before experts, and attention sinks
KINDS = ("llama", "gpt2", "mixtral", "gemma2", "glm4_moe", "gpt_oss")


def model_of(base: Path, adaptation: str = "lora", **options: object) -> AdaptedModel:
    reasons: Reasons = {}
    found = find_base_model(BaseModelSettings(name=str(base)), reasons)
    module = load_method("adaptation", adaptation)
    resolved = module.resolve(module.Options(**options), describe(found), reasons)
    return adapted_model(found, module, resolved, seed=0)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"), hidden_size=64, num_hidden_layers=4)


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in KINDS else pytest.mark.train) for name in FAMILIES]
)
def test_every_family_is_traced_packed_and_padded(tmp_path, family):
    model = model_of(tiny_base(tmp_path, family))
    for batch in (PACKED, MicroBatch(4, 16, 8, packs=False, loss="fused")):
        trace = model.trace(batch, checkpointing=False, accumulates=True)
        assert trace.peak_bytes > trace.saved_bytes > 0
        assert trace.flops > 0


@pytest.mark.parametrize("adaptation", ["lora", "bottleneck", "ia3", "prompt", "prefix", "ptuning", "full"])
def test_every_adaptation_is_traced_and_counted(base, adaptation):
    model = model_of(base, adaptation)
    assert 0 < model.trainable_bytes == 4 * model.trainable
    assert model.trace(PACKED, checkpointing=False, accumulates=True).peak_bytes > 0


def test_starts_that_need_weights_have_the_same_shapes(base):
    plain, pissa = model_of(base, rank=4), model_of(base, rank=4, init="pissa")
    assert plain.trainable == pissa.trainable


def test_memory_grows_with_tokens_and_falls_with_checkpointing(base):
    model = model_of(base)
    small = model.trace(PACKED, checkpointing=False, accumulates=True)
    large = model.trace(MicroBatch(16, 16, 32, True, "logits"), checkpointing=False, accumulates=True)
    spared = model.trace(MicroBatch(16, 16, 32, True, "logits"), checkpointing=True, accumulates=True)
    assert large.saved_bytes == pytest.approx(4 * small.saved_bytes, rel=0.02)
    assert spared.saved_bytes < large.saved_bytes / 4
    # four products a layer become five to six: forward again, without weight gradients of the frozen base
    assert 1.3 < spared.flops / large.flops < 1.6


def test_operations_are_those_of_the_frozen_base_and_the_adapter(base):
    model = model_of(base)
    frozen = sum(
        p.numel()
        for n, p in model.model.named_parameters()
        if not p.requires_grad and p.ndim == 2 and "embed" not in n and "lm_head" not in n
    )
    trace = model.trace(PACKED, checkpointing=False, accumulates=True)
    expected = PACKED.tokens * (
        4 * frozen + 6 * model.trainable
    )  # the convention: forward and the gradient of the input
    assert expected < trace.flops < 1.3 * expected  # attention and the head come on top


def test_what_is_counted_is_what_torch_saves(base):
    """The same model with real tensors, its saved tensors counted by torch's own hooks, every storage once."""
    model = model_of(base)
    trace = model.trace(PACKED, checkpointing=False, accumulates=True)
    real = model.model.to_empty(device="cpu")
    known = {tensor.untyped_storage().data_ptr() for tensor in [*real.parameters(), *real.buffers()]}
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.zeros((1, PACKED.tokens), dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = real(
            input_ids=ids,
            position_ids=ids,
            row_lengths=(16,) * 4,
            use_cache=False,
            logits_to_keep=torch.zeros(8, dtype=torch.long),
        ).logits[0]
        loss = torch.nn.functional.cross_entropy(logits.float(), torch.zeros(8, dtype=torch.long))
    assert loss.requires_grad
    assert trace.saved_bytes == pytest.approx(sum(found.values()), rel=0.03)


def test_random_states_are_left_as_they_were(base):
    random.seed(1)
    torch.manual_seed(1)
    expected = random.random(), float(torch.rand(()))
    random.seed(1)
    torch.manual_seed(1)
    model_of(base)
    assert (random.random(), float(torch.rand(()))) == expected


def test_what_cannot_be_traced_is_told(base):
    model = model_of(base)
    block = model.model.get_base_model().model.layers[0]
    block.register_forward_pre_hook(lambda module, args: args[0].sum().item())
    with pytest.raises(UntraceableError, match="meta tensors"):
        model.trace(PACKED, checkpointing=False, accumulates=False)
    assert torch.is_autocast_enabled("cpu") is False
