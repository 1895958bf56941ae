"""The repair of vLLM's CPU operators: rows without an adapter get nothing, others what they got."""

import sys

import pytest
import torch

from mlflow_finetune_plugin.serving.engines import vllm_cpu_lora


def _shrink(inputs, weights, output, indices, scaling=1.0):
    """As vLLM 0.32 has it: -1 is the last slot."""
    output[:] = scaling * torch.einsum("bi,boi->bo", inputs, weights[indices].squeeze(1))


def test_rows_without_an_adapter_are_skipped():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 8, generator=generator)
    weights = torch.randn(3, 1, 2, 8, generator=generator)
    indices = torch.tensor([0, -1, 2, -1, 1])
    plain, repaired = torch.empty(5, 2), torch.full((5, 2), 7.0)
    _shrink(inputs, weights, plain, indices, 0.5)
    vllm_cpu_lora.skipping(_shrink)(inputs, weights, repaired, indices, 0.5)
    assert plain[1].abs().sum() > 0, "this is what is repaired"
    assert torch.equal(repaired[indices >= 0], plain[indices >= 0])
    assert not repaired[indices < 0].any()


@pytest.mark.vllm
def test_every_place_of_vllm_has_it():
    pytest.importorskip("vllm", reason="vLLM is not installed")
    import vllm.lora.punica_wrapper.punica_cpu as wrapper

    vllm_cpu_lora.register()
    vllm_cpu_lora.register()
    for place in vllm_cpu_lora._MODULES:
        operator = sys.modules[place].bgmv_shrink
        assert operator.skips_rows_without_adapter
        assert operator is wrapper.bgmv_shrink
    output = torch.full((2, 4), 7.0)
    prefill = sys.modules[vllm_cpu_lora._MODULES[0]].sgmv_shrink
    index, lengths = torch.tensor([-1, 0]), torch.tensor([1, 1])
    prefill(torch.ones(2, 3), torch.ones(2, 1, 4, 3), output, torch.tensor([0, 1]), lengths, index, 2, 1, 2, 1.0)
    assert output.tolist() == [[0.0] * 4, [3.0] * 4]
