"""Reward models: the trainer's loss and gradient are those of TRL, whatever the division, and a resumed training continues exactly."""

import datasets
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_bases import tiny_base
from training.row_trainers.test_pairs import LENGTHS, pairs_of, saves
from training.shared_steps import together
from training.trained import events, logged, run
from transformers import AutoTokenizer

from mlflow_finetune_plugin.base_models import loading
from mlflow_finetune_plugin.base_models.settings import BaseModelSettings
from mlflow_finetune_plugin.methods import load_method
from mlflow_finetune_plugin.training.checkpoints import Checkpoint
from mlflow_finetune_plugin.training.row_trainers.pairs import RewardTrainer
from mlflow_finetune_plugin.training.weights import trained_weights

pytestmark = pytest.mark.train

REWARD = load_method("objective", "reward").Options


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


def scored(base, dropout: float = 0.0) -> torch.nn.Module:
    """The base with a score head and a LoRA whose B is not zero, so that every weight has a gradient."""
    torch.set_num_threads(1)
    model = loading.load_score_model(loading.find_base_model(BaseModelSettings(name=str(base)), {}), seed=0)
    torch.manual_seed(0)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        init_lora_weights=False,
        lora_dropout=dropout,
        task_type="SEQ_CLS",
    )
    model = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.mul_(0.05)
    return model


def trl_losses(base, folder, rows, options, steps):
    """The losses of TRL's folder trainer on the same pairs in the same order."""
    from trl import RewardConfig, RewardTrainer

    class Ours(RewardTrainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    columns = [
        {"chosen_ids": row["input_ids"], "rejected_ids": row["rejected_ids"]}
        | ({"margin": row["margin"]} if "margin" in row else {})
        for row in rows
    ]
    arguments = RewardConfig(
        output_dir=str(folder / "trl"),
        center_rewards_coefficient=options.center_rewards_coefficient or None,
        max_length=None,
        per_device_train_batch_size=len(rows),
        max_steps=steps,
        learning_rate=1e-3,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        logging_steps=1,
        logging_first_step=True,
        save_strategy="no",
        max_grad_norm=1.0,
    )
    trainer = Ours(
        model=scored(base),
        args=arguments,
        train_dataset=datasets.Dataset.from_list(columns),
        processing_class=AutoTokenizer.from_pretrained(base),
    )
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("margins", [False, True])
@pytest.mark.parametrize("coefficient", [0.0, 0.01])
def test_losses_and_their_gradients_are_those_of_trl(base, tmp_path, coefficient, margins):
    options, rows = REWARD(center_rewards_coefficient=coefficient), pairs_of(LENGTHS)
    if margins:
        rows = rows.add_column("margin", [0.5 * i for i in range(len(rows))])
    expected = trl_losses(base, tmp_path, rows, options, steps=3)
    run(
        base,
        tmp_path / "ours",
        model=scored(base),
        rows=rows,
        objective="reward",
        objective_options=options,
        max_steps=3,
    )
    losses = [value for _, value in logged(tmp_path / "ours", "train/loss")]
    assert losses == pytest.approx([entry["loss"] for entry in expected], rel=0, abs=1e-6)
    for name in ("accuracy", "margin", "mean_reward", "grad_norm"):
        values = [value for _, value in logged(tmp_path / "ours", f"train/{name}")]
        assert values == pytest.approx([entry[name] for entry in expected], rel=1e-4, abs=1e-5), name
    lowest = [value for _, value in logged(tmp_path / "ours", "train/min_reward")]
    assert all(low >= entry["min_reward"] - 1e-5 for low, entry in zip(lowest, expected, strict=True))
    assert not logged(tmp_path / "ours", "train/mean_token_accuracy")  # no token is predicted


@pytest.mark.parametrize("batching", ["padded", "grouped", "packed"])
@pytest.mark.parametrize("tokens", [24, 512])
def test_the_division_changes_neither_loss_nor_gradient(base, tmp_path, batching, tokens):
    rows = pairs_of(LENGTHS)
    whole, _ = run(base, tmp_path / "whole", model=scored(base), rows=rows, objective="reward", max_steps=1)
    divided, _ = run(
        base,
        tmp_path / "divided",
        model=scored(base),
        rows=rows,
        objective="reward",
        max_steps=1,
        batching=batching,
        max_batch_tokens=tokens,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    )
    assert divided.losses[0][1] == pytest.approx(whole.losses[0][1], rel=1e-5)
    norms = [logged(tmp_path / name, "train/grad_norm")[0][1] for name in ("whole", "divided")]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_tokens_behind_the_end_of_the_turn_change_nothing(base, tmp_path):
    rows = pairs_of(LENGTHS)
    behind = [
        {**row, "input_ids": [*row["input_ids"], 9], "labels": [*row["labels"], -100]} for row in rows
    ]  # a template's line break behind the end-of-turn token
    whole, _ = run(base, tmp_path / "whole", model=scored(base), rows=rows, objective="reward", max_steps=1)
    longer, _ = run(
        base,
        tmp_path / "longer",
        model=scored(base),
        rows=datasets.Dataset.from_list(behind),
        objective="reward",
        max_steps=1,
    )
    assert longer.losses == whole.losses


def test_training_tells_the_better_answers_and_stops_when_validation_stops_improving(base, tmp_path):
    rows = pairs_of(LENGTHS)
    result, _ = run(
        base,
        tmp_path,
        model=scored(base),
        rows=rows,
        eval_rows=rows,
        objective="reward",
        max_steps=60,
        eval_steps=5,
        learning_rate=1e-2,
        metric_for_best_model="eval_accuracy",
        load_best_model_at_end=True,
        early_stopping_patience=2,
    )
    accuracies = logged(tmp_path, "validation/accuracy")
    assert accuracies[-1][1] == 1.0
    assert result.steps < 60  # accuracy cannot rise above 1
    assert result.best_step == accuracies[-3][0]
    assert logged(tmp_path, "validation/margin")[-1][1] > 1
    assert abs(logged(tmp_path, "train/mean_reward")[-1][1]) < 3


def test_a_resumed_training_continues_to_the_last_bit(base, tmp_path):
    rows, checkpoints = pairs_of(LENGTHS), []
    settings = {
        "rows": rows,
        "objective": "reward",
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "save_steps": 3,
        "options": load_method("adaptation", "lora").Options(rank=4, alpha=8.0),
    }
    _, whole = run(base, tmp_path / "whole", model=scored(base, 0.1), saves=saves(tmp_path, checkpoints), **settings)
    third = next(checkpoint for checkpoint in checkpoints if checkpoint.step == 3)
    _, resumed = run(
        base, tmp_path / "resumed", model=scored(base, 0.1), checkpoint=Checkpoint(third.folder, 3, {}), **settings
    )
    assert any("score" in name for name, value in resumed.named_parameters() if value.requires_grad)
    for (name, expected), (_, value) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(expected, value), name


def test_processes_make_the_steps_of_one_and_a_division_for_memory_changes_nothing(base, tmp_path):
    """The second process refuses its first pass, as an allocator would; only it computes its part again."""
    rows = pairs_of(LENGTHS)

    def trained_by(count, name, *, refuses=False):
        def work(processes):
            loss, refused = RewardTrainer._loss, []

            def _loss(self, model, rows, num_items):
                if not refused and len(rows) > 1 and processes.rank == 1:
                    refused.append(True)
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
                return loss(self, model, rows, num_items)

            if refuses:
                RewardTrainer._loss = _loss
            folder = tmp_path / name / str(processes.rank)
            settings = {"per_device_train_batch_size": 8 // count, "max_steps": 3, "eval_steps": 3}
            model = scored(base)
            run(
                base,
                folder,
                model=model,
                rows=rows,
                eval_rows=rows,
                objective="reward",
                processes=processes,
                **settings,
            )
            torch.save(trained_weights(model), folder / "weights.pt")

        (tmp_path / name).mkdir()
        assert together(count, tmp_path / name, work) == [0] * count
        return torch.load(tmp_path / name / "0" / "weights.pt")

    single, double, halved = trained_by(1, "one"), trained_by(2, "two"), trained_by(2, "short", refuses=True)
    for name, weights in single.items():
        torch.testing.assert_close(double[name], weights, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(halved[name], weights, rtol=1e-4, atol=1e-6)
    for name in ("train/accuracy", "train/margin", "validation/mean_reward"):
        assert logged(tmp_path / "two" / "0", name) == [
            (step, pytest.approx(value, rel=1e-4, abs=1e-6)) for step, value in logged(tmp_path / "one" / "0", name)
        ]
    (note,) = events(tmp_path / "short" / "1", "note")
    assert "the step is repeated with micro-batches of" in note["text"]
