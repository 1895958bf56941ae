"""Rated answers: loss and gradient are those of TRL, whatever the division, and a resumed training continues exactly."""

import datasets
import numpy as np
import pytest
import torch
from tiny_bases import tiny_base
from training.row_trainers.test_pairs import LENGTHS, saves
from training.trained import IGNORED, adapted, logged, run
from transformers import AutoTokenizer

from mlflow_finetune_plugin.methods import load_method
from mlflow_finetune_plugin.training.checkpoints import Checkpoint
from mlflow_finetune_plugin.training.row_trainers.ratings import borrowed, partners

pytestmark = pytest.mark.train

KTO = load_method("objective", "kto").Options
WEIGHTS = {"desirable_weight": 1.0, "undesirable_weight": 1.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


def rated_rows() -> datasets.Dataset:
    generator = torch.Generator().manual_seed(7)
    rows = []
    for number, (prompt, answer, _) in enumerate(LENGTHS):
        ids = torch.randint(7, 299, (prompt + answer,), generator=generator).tolist()
        labels = [IGNORED] * prompt + ids[prompt:]
        rows.append({"input_ids": ids, "labels": labels, "task": "t", "is_good": number % 3 != 0})
    return datasets.Dataset.from_list(rows)


def trl_log(base, folder, rows, options, steps):
    """The log of TRL's own trainer on the same rows and borrowed answers, in one batch a step."""
    from trl import KTOConfig, KTOTrainer

    class Ours(KTOTrainer):
        def _prepare_dataset(self, dataset, *_, **__):
            return dataset

    partner = partners(len(rows), 0)
    columns = []
    for number, row in enumerate(rows):
        start = sum(label == IGNORED for label in row["labels"])
        other = borrowed(row, rows[int(partner[number])])
        columns.append(
            {
                "prompt_ids": row["input_ids"][:start],
                "completion_ids": row["input_ids"][start:],
                "KL_completion_ids": other["borrowed_ids"][start:],
                "label": row["is_good"],
            }
        )
    arguments = KTOConfig(
        output_dir=str(folder / "trl"),
        beta=options.beta,
        loss_type=options.loss_type,
        desirable_weight=options.desirable_weight,
        undesirable_weight=options.undesirable_weight,
        max_length=None,
        per_device_train_batch_size=len(rows),
        max_steps=steps,
        learning_rate=1e-3,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        logging_steps=1,
        save_strategy="no",
    )
    dataset, tokenizer = datasets.Dataset.from_list(columns), AutoTokenizer.from_pretrained(base)
    trainer = Ours(model=adapted(base), args=arguments, train_dataset=dataset, processing_class=tokenizer)
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    "options",
    [
        KTO(**WEIGHTS),
        KTO(beta=0.5, desirable_weight=1.3, undesirable_weight=0.7),
        KTO(loss_type="apo_zero_unpaired", **WEIGHTS),
    ],
    ids=["kto", "weighted", "apo_zero_unpaired"],
)
def test_losses_and_their_gradients_are_those_of_trl(base, tmp_path, options):
    rows = rated_rows()
    expected = trl_log(base, tmp_path, rows, options, steps=3)
    run(base, tmp_path / "ours", rows=rows, objective="kto", objective_options=options, max_steps=3)
    losses = [value for _, value in logged(tmp_path / "ours", "train/loss")]
    assert losses == pytest.approx([entry["loss"] for entry in expected], rel=1e-5, abs=1e-6)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "kl", "grad_norm"):
        values = [value for _, value in logged(tmp_path / "ours", f"train/{name}")]
        assert values == pytest.approx([entry[name] for entry in expected], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("batching", ["padded", "grouped", "packed"])
def test_the_division_changes_neither_loss_nor_gradient(base, tmp_path, batching):
    rows = rated_rows()
    run(base, tmp_path / "whole", rows=rows, objective="kto", max_steps=2, learning_rate=1e-2)
    small = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_batch_tokens": 24}
    run(
        base, tmp_path / "divided", rows=rows, objective="kto", max_steps=2, learning_rate=1e-2,
        batching=batching, **small,
    )  # fmt: skip
    for name in ("loss", "grad_norm", "kl", "rewards/margins"):
        whole, divided = (logged(tmp_path / folder, f"train/{name}") for folder in ("whole", "divided"))
        assert [v for _, v in divided] == pytest.approx([v for _, v in whole], rel=1e-3, abs=1e-6), name


def test_training_raises_good_answers_above_bad_ones(base, tmp_path):
    rows = rated_rows()
    run(base, tmp_path, rows=rows, eval_rows=rows, objective="kto", max_steps=30, eval_steps=30, learning_rate=1e-2)
    assert logged(tmp_path, "train/rewards/margins")[-1][1] > 1
    assert logged(tmp_path, "validation/rewards/margins")[-1][1] > 1
    assert logged(tmp_path, "train/kl")[0][1] == 0


def test_a_resumed_training_continues_to_the_last_bit(base, tmp_path):
    rows, checkpoints = rated_rows(), []
    settings = {"rows": rows, "objective": "kto", "max_steps": 6, "per_device_train_batch_size": 4, "save_steps": 3}
    _, whole = run(base, tmp_path / "whole", model=adapted(base, 0.1), saves=saves(tmp_path, checkpoints), **settings)
    third = next(checkpoint for checkpoint in checkpoints if checkpoint.step == 3)
    checkpoint = Checkpoint(third.folder, 3, {})
    _, resumed = run(base, tmp_path / "resumed", model=adapted(base, 0.1), checkpoint=checkpoint, **settings)
    for (name, expected), (_, value) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(expected, value), name


def test_each_answer_is_borrowed_once_and_never_by_its_own_row():
    partner = partners(7, seed=3)
    assert sorted(partner.tolist()) == list(range(7))
    assert (partner != np.arange(7)).all()
    assert (partner == partners(7, seed=3)).all()


def test_a_borrowed_answer_follows_the_prompt_of_the_row():
    row = {"input_ids": [1, 2, 3, 9], "labels": [IGNORED, IGNORED, 3, 9]}
    other = {"input_ids": [5, 6, 7, 8, 9, 10], "labels": [IGNORED, 6, IGNORED, 8, 9, IGNORED]}
    assert borrowed(row, other) == {"borrowed_ids": [1, 2, 8, 9], "borrowed_labels": [IGNORED, IGNORED, 8, 9]}
