"""Rows that share a pass: divided as asked, each blind to the others, and no different in loss and gradient from rows alone."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from tiny_bases import FAMILIES, tiny_base
from training.trained import IGNORED, LENGTHS, adapted, logged, naive_loss, naive_norm, rows_of, run
from transformers import AutoModelForCausalLM

from mlflow_finetune_plugin.base_models.attention import PACKS
from mlflow_finetune_plugin.objectives import sft
from mlflow_finetune_plugin.training import packed_attention as packed_attention_module
from mlflow_finetune_plugin.training.packed_attention import packed_attention
from mlflow_finetune_plugin.training.packing import MicroBatches, pack, pad

pytestmark = pytest.mark.train

ROWS = [7, 3, 12, 5, 5, 20]


def rows(lengths: list[int], seed: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(7, 299, (length,), generator=generator) for length in lengths]
    return [(one, one.clone()) for one in ids]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


def test_padded_keeps_the_order_drawn():
    assert MicroBatches("padded", rows=4, tokens=1).divide(ROWS) == [[0, 1, 2, 3], [4, 5]]


def test_grouped_puts_like_lengths_together_within_the_budget():
    micro = MicroBatches("grouped", rows=1, tokens=24)
    assert micro.divide(ROWS) == [[5], [2, 0], [3, 4, 1]]
    assert [micro.size(part, ROWS) for part in micro.divide(ROWS)] == [20, 24, 15]


def test_packed_fills_the_budget_and_never_needs_more_passes_than_padding():
    micro = MicroBatches("packed", rows=2, tokens=20)
    assert micro.divide(ROWS) == [[5], [2, 0], [3, 4, 1]]
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        lengths = torch.randint(1, 60, (16,), generator=generator).tolist()
        divided = MicroBatches("packed", rows=4, tokens=4 * max(lengths)).divide(lengths)
        assert sorted(i for part in divided for i in part) == list(range(16))
        assert len(divided) <= 4


@pytest.mark.parametrize("batching", ["padded", "grouped", "packed"])
def test_halving_ends_at_single_rows(batching):
    micro, sizes = MicroBatches(batching, rows=6, tokens=60), []
    while micro is not None:
        sizes.append(max(micro.size(part, ROWS) for part in micro.divide(ROWS)))
        last, micro = micro, micro.halved(ROWS)
    assert all(later <= max(20, earlier / 2 + 20) for earlier, later in pairwise(sizes))
    assert all(len(part) == 1 for part in last.divide(ROWS))
    assert sorted(i for part in last.divide(ROWS) for i in part) == list(range(6))


@pytest.mark.parametrize(
    ("family", "attention"), [*((family, None) for family in sorted(FAMILIES)), ("gemma2", "eager")]
)
def test_packed_rows_answer_as_alone_and_know_nothing_of_each_other(family, attention, tmp_path):
    """The window of 16 that mistral and gemma have here is shorter than the third row."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(
        tiny_base(tmp_path, family), dtype=torch.float32, attn_implementation=attention
    ).eval()
    wrapped = _Wrapped(model)
    ours, others = rows([9, 4, 40, 11]), rows([9, 4, 40, 11], seed=4)
    with torch.inference_mode():
        alone = [model(input_ids=ids[None]).logits[0] for ids, _ in ours]
        with packed_attention(wrapped):
            together = model(**pack(ours).inputs).logits[0].split([9, 4, 40, 11])
            changed = model(**pack([others[0], ours[1], others[2], ours[3]]).inputs).logits[0].split([9, 4, 40, 11])
    for one, packed in zip(alone, together, strict=True):
        torch.testing.assert_close(packed, one, atol=2e-4, rtol=1e-4)
    if "moe" not in family and family != "mixtral":  # experts add up their tokens in an order that others change
        assert torch.equal(changed[1], together[1])
        assert torch.equal(changed[3], together[3])
    torch.testing.assert_close(changed[1], together[1], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(changed[3], together[3], atol=2e-4, rtol=1e-4)
    assert not torch.equal(changed[0], together[0])
    assert model.config._attn_implementation in ("sdpa", "eager")
    assert str(model.config.model_type) in PACKS


class _Wrapped:
    """As much of a PeftModel as attention is switched through."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model

    def get_base_model(self) -> torch.nn.Module:
        return self._model


def test_first_label_of_a_row_is_never_scored():
    batch = pack(rows([3, 2]))
    assert batch.labels.tolist()[0][0] == batch.labels.tolist()[0][3] == IGNORED
    assert batch.keep.tolist() == [0, 1, 3]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch.inputs["cu_seq_lens_q"].tolist() == [0, 3, 5]
    padded = pad(rows([3, 2]), 0)
    assert padded.keep.tolist() == [0, 1, 3]
    assert torch.equal(padded.targets, batch.targets)


@pytest.mark.parametrize(
    ("batching", "tokens"), [("padded", 1), ("grouped", 30), ("packed", 30), ("packed", 1000), ("packed", 1)]
)
def test_loss_and_gradient_do_not_depend_on_the_division(batching, tokens, base, tmp_path):
    held = rows_of(LENGTHS)
    model = adapted(base).eval()
    loss = naive_loss(model, held)
    loss.backward()
    result, _ = run(
        base,
        tmp_path,
        rows=held,
        batching=batching,
        max_batch_tokens=tokens,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    )
    assert result.losses == [(1, pytest.approx(float(loss), abs=1e-6))]
    assert logged(tmp_path, "train/grad_norm")[0][1] == pytest.approx(naive_norm(model), rel=1e-5)


@pytest.mark.parametrize(
    "options", [{"label_smoothing_factor": 0.2}, {"objective_options": sft.Options(loss_type="dft")}]
)
def test_other_losses_are_the_same_packed_and_padded(options, base, tmp_path):
    results = [
        run(base, tmp_path / name, rows=rows_of(LENGTHS), batching=name, optim="sgd", learning_rate=0.1, **options)
        for name in ("padded", "packed")
    ]
    (padded, one), (packed, two) = results
    assert packed.losses[0][1] == pytest.approx(padded.losses[0][1], abs=1e-6)
    plain, _ = run(base, tmp_path / "plain", rows=rows_of(LENGTHS))
    assert abs(plain.losses[0][1] - packed.losses[0][1]) > 1e-3  # the option did something
    for (name, a), (_, b) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0, msg=name)


def test_same_rows_share_a_step_whatever_the_batching(base, tmp_path):
    options = {"per_device_train_batch_size": 2, "num_train_epochs": 2.0, "logging_steps": 1}
    curves = [
        run(base, tmp_path / name, rows=rows_of(LENGTHS), batching=name, max_batch_tokens=40, **options)[0].losses
        for name in ("padded", "grouped", "packed")
    ]
    for curve in curves[1:]:
        assert [loss for _, loss in curve] == pytest.approx([loss for _, loss in curves[0]], abs=1e-5)


def test_gradient_checkpointing_knows_the_packed_rows(base, tmp_path):
    options = {"optim": "sgd", "learning_rate": 0.1}
    _, plain = run(base, tmp_path / "a", rows=rows_of(LENGTHS), **options)
    _, recomputed = run(base, tmp_path / "b", rows=rows_of(LENGTHS), gradient_checkpointing=True, **options)
    for (name, a), (_, b) in zip(plain.named_parameters(), recomputed.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0, msg=name)


@pytest.mark.skipif(packed_attention_module.varlen_attn is None, reason="this torch has no varlen_attn that takes all")
def test_call_for_all_rows_at_once_has_the_shape_of_the_rows(monkeypatch):
    """On tensors without data: the kernel itself needs a GPU (tests/test_gpu.py), its signature does not."""
    monkeypatch.setattr(packed_attention_module, "_takes_varlen", lambda query: True)
    query, key, value = (
        torch.empty(1, heads, 50, 64, device="meta", dtype=torch.bfloat16, requires_grad=True) for heads in (4, 2, 2)
    )
    borders = torch.empty(4, dtype=torch.int32, device="meta")
    output, _ = packed_attention_module.packed_rows(
        _Attention("packed_sdpa"), query, key, value, None, row_lengths=(9, 40, 1), cu_seq_lens_q=borders
    )
    gradients = torch.autograd.grad(output.sum(), (query, key, value))
    assert output.shape == (1, 50, 4, 64)
    assert [gradient.shape for gradient in gradients] == [query.shape, key.shape, value.shape]


class _Attention(torch.nn.Module):
    def __init__(self, kernel: str) -> None:
        super().__init__()
        self.config = SimpleNamespace(_attn_implementation=kernel)
