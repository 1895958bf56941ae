"""Training against a naive computation: the loss, the batches, the counts, and a loss that is no number."""

import math
from pathlib import Path

import pytest
import torch
from tiny_bases import tiny_base
from training.trained import LENGTHS, adapted, events, logged, naive_loss, naive_norm, rows_of, run
from transformers import AutoModelForCausalLM, AutoTokenizer

from mlflow_finetune_plugin.adaptations import lora
from mlflow_finetune_plugin.errors import TrainingError

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


def test_first_loss_and_gradient_are_the_naive_ones(base, tmp_path):
    rows = rows_of(LENGTHS)
    model = adapted(base)
    model.eval()
    loss = naive_loss(model, rows)
    loss.backward()
    result, _ = run(base, tmp_path, rows=rows)
    assert result.steps == 1
    assert result.losses == [(1, pytest.approx(float(loss), abs=1e-5))]
    assert logged(tmp_path, "train/grad_norm")[0][1] == pytest.approx(naive_norm(model), rel=1e-4)


def test_accumulated_batches_equal_the_big_batch(base, tmp_path):
    """Rows have unequal answers, so a mean of means would be another loss."""
    rows = rows_of(LENGTHS)
    options = {"rows": rows, "optim": "sgd", "learning_rate": 0.1}
    big, one = run(base, tmp_path / "big", per_device_train_batch_size=8, **options)
    small, two = run(base, tmp_path / "small", per_device_train_batch_size=2, gradient_accumulation_steps=4, **options)
    assert (big.steps, small.steps) == (1, 1)
    assert small.losses[0][1] == pytest.approx(big.losses[0][1], abs=1e-5)
    assert small.tokens == big.tokens
    for (name, a), (_, b) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0, msg=name)


def test_padding_token_that_is_the_end_token_changes_nothing(base, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token
    folder = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows = rows_of(LENGTHS)
    one, _ = run(base, tmp_path / "a", rows=rows)
    two, _ = run(folder, tmp_path / "b", rows=rows)
    assert two.losses == one.losses
    assert two.tokens == one.tokens


@pytest.mark.parametrize("logging_steps", [1, 3, 100])
def test_tokens_and_last_step_are_counted_whatever_is_logged(logging_steps, base, tmp_path):
    rows = rows_of(LENGTHS)  # 8 rows, batch 2: 4 steps an epoch
    result, _ = run(
        base, tmp_path, rows=rows, per_device_train_batch_size=2, num_train_epochs=2.0, logging_steps=logging_steps
    )
    assert result.steps == 8
    assert result.tokens == 2 * sum(p + a for p, a in LENGTHS)
    assert [step for step, _ in result.losses] == {1: list(range(1, 9)), 3: [1, 3, 6, 8], 100: [1, 8]}[logging_steps]
    progress = events(tmp_path, "progress")
    assert [(e["done"], e["total"]) for e in (progress[0], progress[-1])] == [(0, 8), (8, 8)]
    assert progress[-1]["seconds_left"] == 0
    assert len(events(tmp_path, "first_step")) == 1
    assert 0 < result.seconds < 60
    assert all(speed > 0 for _, speed in logged(tmp_path, "train/tokens_per_second"))


def test_held_out_loss_is_naive_and_its_time_is_not_training(base, tmp_path):
    rows, held_out = rows_of(LENGTHS), rows_of([(4, 2), (3, 6)] * 2)
    result, model = run(
        base, tmp_path, rows=rows, eval_rows=held_out, max_steps=4, per_device_train_batch_size=4, eval_steps=2
    )
    assert [step for step, _ in result.eval_losses] == [2, 4]
    assert logged(tmp_path, "eval_loss") == result.eval_losses
    with torch.inference_mode():
        assert result.eval_losses[-1][1] == pytest.approx(float(naive_loss(model.eval(), held_out)), abs=1e-5)
    assert result.tokens == 2 * sum(p + a for p, a in LENGTHS)  # 4 steps of 4 rows, no held-out token


def test_without_eval_steps_nothing_is_evaluated(base, tmp_path):
    result, _ = run(base, tmp_path, rows=rows_of(LENGTHS), eval_rows=rows_of([(4, 2)]))
    assert result.eval_losses == []


def test_poisoned_weight_stops_the_training_at_its_step(base, tmp_path):
    model = adapted(base)
    with torch.no_grad():
        model.get_base_model().model.norm.weight[0] = float("nan")
    with pytest.raises(TrainingError, match=r"the loss is nan .* at step 1; fix: lower training.learning_rate"):
        run(base, tmp_path, rows=rows_of(LENGTHS), model=model, max_steps=5)
    assert math.isnan(logged(tmp_path, "train/loss")[0][1])


def test_exploding_training_names_the_steps_it_happened_in(base, tmp_path):
    with pytest.raises(TrainingError, match=r"(at step \d+|between steps \d+ and \d+); fix"):
        run(base, tmp_path, rows=rows_of(LENGTHS), max_steps=40, learning_rate=1e20, max_grad_norm=0.0, logging_steps=5)


def test_loraplus_trains_with_two_rates(base, tmp_path):
    """One SGD step moves A and B by rate x gradient, so their ratio shows the rates."""
    rows, start = rows_of(LENGTHS), adapted(base)
    naive_loss(start.eval(), rows).backward()
    options = lora.Options(rank=4, alpha=8.0, loraplus_ratio=16.0)
    _, model = run(base, tmp_path, rows=rows, options=options, optim="sgd", learning_rate=1e-3, max_grad_norm=0.0)
    trained = dict(model.named_parameters())
    for name, before in start.named_parameters():
        if before.grad is not None:
            rate = 16e-3 if "lora_B" in name else 1e-3
            torch.testing.assert_close(trained[name], before - rate * before.grad, atol=1e-6, rtol=0, msg=name)


def test_equal_seeds_give_equal_weights_and_another_seed_does_not(base, tmp_path):
    rows = rows_of(LENGTHS)
    kept = [
        dict(run(base, tmp_path / str(i), rows=rows, per_device_train_batch_size=2, seed=seed)[1].named_parameters())
        for i, seed in enumerate((0, 0, 1))
    ]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])
    assert not all(torch.equal(kept[0][name], kept[2][name]) for name in kept[0])


def test_model_comes_back_without_autocast(base, tmp_path):
    _, model = run(base, tmp_path, rows=rows_of(LENGTHS), bf16=True)
    model.eval()
    seen = []
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    hook = layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.inference_mode():
        model(torch.arange(3, 9)[None])
    hook.remove()
    assert seen == [torch.float32]


def slow_notes(folder: Path) -> list[str]:
    return [event["text"] for event in events(folder, "note") if event["text"].startswith("training is slow")]


def test_training_far_below_the_expected_speed_warns_once_with_the_remedy(base, tmp_path):
    settings = {"rows": rows_of(LENGTHS), "per_device_train_batch_size": 2, "num_train_epochs": 2.0}
    run(base, tmp_path / "slow", expected_tokens_per_s=1e12, **settings)
    (note,) = slow_notes(tmp_path / "slow")
    assert "the plan expects 1,000,000,000,000 of this machine; fix: stop other work on it" in note
    run(base, tmp_path / "as-expected", expected_tokens_per_s=1.0, **settings)
    assert slow_notes(tmp_path / "as-expected") == []
