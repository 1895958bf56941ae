"""Attention and feed-forward are found in any decoder block, or it is said what was seen."""

import pytest
from tiny_bases import tiny_base

from mlflow_finetune_plugin.adaptations._blocks import decoder_blocks, endings
from mlflow_finetune_plugin.base_models import loading
from mlflow_finetune_plugin.base_models.facts import BaseFacts
from mlflow_finetune_plugin.base_models.settings import BaseModelSettings
from mlflow_finetune_plugin.errors import BaseModelError


def facts(linears: dict[str, tuple[int, ...]], others: tuple[str, ...] = (), **more) -> BaseFacts:
    return BaseFacts("odd", 32, 128, 1, linears, others, **more)


@pytest.mark.parametrize(
    ("family", "attention", "feedforward"),
    [
        ("llama", "model.layers.1.self_attn", "model.layers.1.mlp"),
        ("gemma3_text", "model.layers.1.self_attn", "model.layers.1.mlp"),
        ("gpt2", "transformer.h.1.attn", "transformer.h.1.mlp"),
        ("gpt_neox", "gpt_neox.layers.1.attention", "gpt_neox.layers.1.mlp"),
        ("opt", "model.decoder.layers.1.self_attn", "model.decoder.layers.1.fc2"),
        ("mixtral", "model.layers.1.self_attn", "model.layers.1.mlp"),
        ("qwen3_moe", "model.layers.1.self_attn", "model.layers.1.mlp"),
    ],
)
def test_blocks_of_known_families(family, attention, feedforward, tmp_path):
    folder = tiny_base(tmp_path / "base", family)
    base = loading.describe(loading.find_base_model(BaseModelSettings(name=str(folder)), {}))
    blocks = decoder_blocks(base, fix="")
    assert len(blocks) == 2
    assert blocks[1].attention == (attention,)
    assert blocks[1].feedforward == feedforward


def test_blocks_come_in_order_and_endings_name_them_all():
    linears = {f"m.layers.{i}.{name}": (32, 32) for i in range(12) for name in ("attn.q", "mlp.down_proj")}
    base = facts(linears, tuple(f"m.layers.{i}.{name}" for i in range(12) for name in ("attn", "mlp", "norm")))
    blocks = decoder_blocks(base, fix="")
    assert [block.name for block in blocks] == [f"m.layers.{i}" for i in range(12)]
    assert endings(base, blocks, [block.feedforward for block in blocks]) == ["mlp"]


def test_endings_that_match_elsewhere_become_full_names():
    linears = {"m.layers.0.attn.q": (32, 32), "m.layers.0.mlp.down_proj": (32, 48), "extra.mlp.down_proj": (32, 48)}
    base = facts(linears, ("m.layers.0.attn", "m.layers.0.mlp", "extra.mlp"))
    blocks = decoder_blocks(base, fix="")
    assert endings(base, blocks, ["m.layers.0.mlp"]) == ["m.layers.0.mlp"]
    assert endings(base, blocks, ["m.layers.0.attn"]) == ["attn"]


def test_tower_of_another_width_is_no_decoder():
    tower = {"vision.blocks.0.attn.q": (24, 24), "vision.blocks.0.mlp.fc2": (24, 48)}
    decoder = {"text.layers.0.self_attn.q": (32, 32), "text.layers.0.mlp.fc2": (32, 48)}
    blocks = decoder_blocks(facts({**tower, **decoder}), fix="")
    assert [block.name for block in blocks] == ["text.layers.0"]


@pytest.mark.parametrize(
    ("linears", "message"),
    [
        (
            {"m.layers.0.mixer.in_proj": (32, 32)},
            "this odd has no decoder block with a known attention; fix: do that",
        ),
        (
            {"m.0.attn.q": (32, 32), "m.0.mlp.w": (32, 32), "m.0.moe.w": (32, 32)},
            r"feed-forward of m\.0 .*\(attn, mlp, moe\)",
        ),
        ({"m.0.attn.q": (32, 32)}, r"feed-forward of m\.0 is not recognised"),
        ({"m.0.attn.q": (32, 32), "m.0.first": (32, 48), "m.0.second": (48, 32)}, r"feed-forward of m\.0"),
        (
            {"m.0.attn.q": (32, 32), "m.0.mlp.w": (32, 32), "m.1.mixer.q": (32, 32), "m.1.mlp.w": (32, 32)},
            r"attention of m\.1 is not recognised .*\(mixer, mlp\)",
        ),
    ],
    ids=[
        "no attention",
        "two feed-forwards",
        "no feed-forward",
        "layers of unknown names",
        "one block without attention",
    ],
)
def test_what_cannot_be_told_is_an_error_that_names_what_was_seen(linears, message):
    with pytest.raises(BaseModelError, match=message):
        decoder_blocks(facts(linears), fix="do that")
