"""What only a GPU can show. Not yet run on one."""

from __future__ import annotations

import pytest
import torch
from conftest import REPOSITORY

from mlflow_finetune_plugin.training import packed_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
QUICKSTART = str(REPOSITORY / "recipes" / "quickstart")


def test_quickstart_trains_on_the_gpu(workplace):
    result = workplace.mlflow_run(QUICKSTART, "-e", "lora", "-P", "max_steps=60", "-P", "max_rows=40")
    assert result.returncode == 0, result.stdout
    assert "cuda" in result.stdout
    run = workplace.only_run()
    assert run.data.metrics["eval/adapter/exact_match"] > run.data.metrics["eval/base/exact_match"]
    assert run.data.metrics["reload/max_nats"] < 1e-3


def test_half_precision_base_is_trained_and_reloaded(workplace):
    result = workplace.mlflow_run(
        QUICKSTART, "-e", "lora", "-P", "dtype=bfloat16", "-P", "max_steps=60", "-P", "max_rows=40"
    )
    assert result.returncode == 0, result.stdout
    assert workplace.only_run().data.params["training.bf16"] == "True"


def test_four_bit_base_is_trained_and_reloaded(workplace):
    result = workplace.mlflow_run(
        QUICKSTART, "-e", "lora", "-P", "quantization=nf4", "-P", "max_steps=20", "-P", "max_rows=20"
    )
    assert result.returncode == 0, result.stdout


def test_out_of_gpu_memory_is_told_with_its_remedy(workplace):
    result = workplace.mlflow_run(
        QUICKSTART, "-e", "lora", "-P", "max_steps=2", PYTORCH_CUDA_ALLOC_CONF="per_process_memory_fraction:0.00001"
    )
    assert result.returncode == 1
    assert "out of GPU memory" in workplace.only_run().data.tags["finetune.status_reason"]


@pytest.mark.parametrize(("window", "heads"), [(None, 4), (None, 2), (16, 2)])
def test_one_call_for_packed_rows_equals_row_by_row(window, heads, monkeypatch):
    lengths = [9, 40, 1, 70]
    generator = torch.Generator("cuda").manual_seed(0)

    def states(count: int) -> torch.Tensor:
        shape = (1, count, sum(lengths), 64)
        return torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16).requires_grad_()

    inputs = [states(4), states(heads), states(heads)]
    borders = torch.tensor([0, 9, 49, 50, 120], dtype=torch.int32, device="cuda")

    def computed() -> list[torch.Tensor]:
        output, _ = packed_attention.packed_rows(
            _Module(), *inputs, None, row_lengths=lengths, sliding_window=window, cu_seq_lens_q=borders
        )
        return [output, *torch.autograd.grad(output.float().square().sum(), inputs)]

    assert packed_attention._takes_varlen(inputs[0])
    at_once = computed()
    monkeypatch.setattr(packed_attention, "varlen_attn", None)
    for one, other in zip(at_once, computed(), strict=True):
        torch.testing.assert_close(one.float(), other.float(), atol=2e-2, rtol=2e-2)


class _Module(torch.nn.Module):
    class config:
        _attn_implementation = "packed_sdpa"


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_share_a_training(workplace):
    result = workplace.mlflow_run(
        QUICKSTART, "-e", "lora", "-P", "max_steps=60", "-P", "max_rows=40", "-c", '{"gpus_per_node": 2}'
    )
    assert result.returncode == 0, result.stdout
    assert "x 2 processes" in result.stdout


def test_memory_on_the_gpu_is_predicted(workplace):
    result = workplace.mlflow_run(QUICKSTART, "-e", "lora", "-P", "max_steps=20", "-P", "max_rows=20")
    assert result.returncode == 0, result.stdout
    metrics = workplace.only_run().data.metrics
    # the allocator reserves in blocks of 2 MiB and more, which is much for so small a base
    assert 0.3 < metrics["plan/memory_mib"] / metrics["train/peak_memory_mib"] < 1.5
