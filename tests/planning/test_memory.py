"""The arithmetic by hand."""

import pytest

from mlflow_finetune_plugin.planning.memory import MIB, MemoryParts, mib, optimizer_bytes, weight_bytes

SHAPES = {"q_proj": (64, 128), "fc": (256, 64)}  # 8192 + 16384 = 24576 parameters


def test_weights_in_their_precision():
    assert weight_bytes(30_000, SHAPES, "float32", None) == 120_000
    assert weight_bytes(30_000, SHAPES, "bfloat16", None) == 60_000


def test_only_linear_layers_are_quantised():
    rest = (30_000 - 24_576) * 2
    assert weight_bytes(30_000, SHAPES, "bfloat16", "int8") == 24_576 + 4 * (64 + 256) + rest
    packed = 24_576 // 2  # 4 bits
    scales = (
        24_576 // 64 + 24_576 // (64 * 256) * 4 + 2 * 4 * (256 + 16)
    )  # 8 bits a block, float32 a block of blocks, codes
    assert weight_bytes(30_000, SHAPES, "bfloat16", "nf4") == pytest.approx(packed + scales + rest, abs=8)


@pytest.mark.parametrize(
    ("optim", "expected"),
    [
        ("adamw_torch", 8000),
        ("adamw_torch_fused", 8000),
        ("sgd", 0),
        ("paged_adamw_32bit", 8000),
        ("lion_32bit", 4000),
        ("adamw_8bit", 2031),
        ("paged_lion_8bit", 1015),
    ],
)
def test_optimiser_states_of_a_thousand_float32_parameters(optim, expected):
    assert optimizer_bytes(optim, 1000, 4000) == expected


def test_every_optimiser_of_the_settings_has_its_bytes():
    from typing import get_args

    from mlflow_finetune_plugin.config.sections import TrainingSettings

    for optim in get_args(TrainingSettings.model_fields["optim"].annotation):
        assert optimizer_bytes(optim, 100, 400) >= 0


def test_the_total_is_the_worst_phase():
    parts = MemoryParts(
        process=100, base_weights=50, adapter=2, gradients=3, optimizer=4, micro_batch=40, loading=150, proof=300
    )
    assert (parts.training, parts.training_and_loading, parts.total, parts.peak_phase) == (199, 199, 300, "proof")
    assert mib(3 * MIB) == 3.0
