"""Pairs: the trainer's loss and gradient are those of TRL, whatever the division, and a resumed training continues exactly."""

import datasets
import pytest
import torch
from tiny_bases import tiny_base
from training.trained import IGNORED, adapted, logged, naive_norm, run
from transformers import AutoTokenizer

from mlflow_finetune_plugin.methods import load_method
from mlflow_finetune_plugin.training.checkpoints import Checkpoint
from mlflow_finetune_plugin.training.reference import REFERENCE_FILE, ReferenceTrainer
from mlflow_finetune_plugin.training.saving import Saves

pytestmark = pytest.mark.train

LENGTHS = [(5, 3, 6), (9, 1, 2), (2, 7, 3), (12, 4, 4), (3, 3, 9), (8, 2, 1), (4, 9, 2), (6, 5, 5)]
"""Tokens of the prompt, of the better and of the worse answer."""
DPO = load_method("objective", "dpo").Options


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


def pairs_of(lengths: list[tuple[int, int, int]]) -> datasets.Dataset:
    generator = torch.Generator().manual_seed(7)

    def tokens(count: int) -> list[int]:
        return torch.randint(7, 299, (count,), generator=generator).tolist()

    rows = []
    for prompt, chosen, rejected in lengths:
        start, better, worse = tokens(prompt), tokens(chosen), tokens(rejected)
        rows.append(
            {
                "input_ids": start + better,
                "labels": [IGNORED] * prompt + better,
                "rejected_ids": start + worse,
                "rejected_labels": [IGNORED] * prompt + worse,
                "task": "t",
            }
        )
    return datasets.Dataset.from_list(rows)


def trl_losses(base, folder, rows, options, steps):
    """The losses of TRL's own trainer on the same pairs in the same order, with the model before training as reference."""
    from trl import DPOConfig, DPOTrainer

    class Ours(DPOTrainer):
        def _prepare_dataset(self, dataset, *_, **__):
            return dataset

        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    model = adapted(base)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    prompts = [sum(label == IGNORED for label in row["labels"]) for row in rows]
    columns = [
        {
            "prompt_ids": row["input_ids"][:n],
            "chosen_ids": row["input_ids"][n:],
            "rejected_ids": row["rejected_ids"][n:],
        }
        for row, n in zip(rows, prompts, strict=True)
    ]
    arguments = DPOConfig(
        output_dir=str(folder / "trl"),
        beta=options.beta,
        loss_type=list(options.loss_type),
        loss_weights=options.loss_weights,
        label_smoothing=options.label_smoothing,
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
        model=model,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(columns),
        processing_class=AutoTokenizer.from_pretrained(base),
    )
    # TRL copies the adapter as "ref" when it is made, so the reference is the model before training, as here.
    assert all(torch.equal(model.state_dict()[name], value) for name, value in start.items())
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    "options",
    [
        DPO(),
        *(DPO(loss_type=[name]) for name in ("sigmoid", "hinge", "ipo", "nca_pair", "sppo_hard")),
        *(DPO(loss_type=[name]) for name in ("apo_zero", "apo_down", "sigmoid_norm")),
        DPO(loss_type=["robust"], label_smoothing=0.1),
        DPO(loss_type=["exo_pair"], label_smoothing=0.1),
        DPO(loss_type=["sigmoid", "sft"], loss_weights=[0.7, 0.3], beta=0.5),
    ],
    ids=lambda options: "+".join(options.loss_type),
)
def test_losses_and_their_gradients_are_those_of_trl(base, tmp_path, options):
    rows = pairs_of(LENGTHS)
    expected = trl_losses(base, tmp_path, rows, options, steps=3)
    run(
        base,
        tmp_path / "ours",
        rows=rows,
        objective="dpo",
        objective_options=options,
        max_steps=3,
        lr_scheduler_type="linear",
    )
    losses = [value for _, value in logged(tmp_path / "ours", "train/loss")]
    assert losses == pytest.approx([entry["loss"] for entry in expected], rel=1e-5, abs=1e-6)
    for name in ("rewards/chosen", "rewards/margins", "logps/chosen", "logps/rejected", "grad_norm"):
        values = [value for _, value in logged(tmp_path / "ours", f"train/{name}")]
        assert values == pytest.approx([entry[name] for entry in expected], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("batching", ["padded", "grouped", "packed"])
@pytest.mark.parametrize("tokens", [24, 512])
@pytest.mark.parametrize("objective", ["dpo", "orpo"])
def test_the_division_changes_neither_loss_nor_gradient(base, tmp_path, batching, tokens, objective):
    rows = pairs_of(LENGTHS)
    whole, _ = run(base, tmp_path / "whole", rows=rows, objective=objective, max_steps=1)
    divided, model = run(
        base,
        tmp_path / "divided",
        rows=rows,
        objective=objective,
        max_steps=1,
        batching=batching,
        max_batch_tokens=tokens,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    )
    assert divided.losses[0][1] == pytest.approx(whole.losses[0][1], rel=1e-5)
    norms = [logged(tmp_path / name, "train/grad_norm")[0][1] for name in ("whole", "divided")]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    assert naive_norm(model) == 0  # the step is done


def test_training_prefers_the_better_answers(base, tmp_path):
    rows = pairs_of(LENGTHS)
    run(base, tmp_path, rows=rows, eval_rows=rows, objective="dpo", max_steps=30, eval_steps=15, learning_rate=1e-2)
    accuracies = logged(tmp_path, "train/rewards/accuracies")
    assert (accuracies[0][1], accuracies[-1][1]) == (0.0, 1.0)  # before the first step, both answers have reward 0
    assert [step for step, _ in logged(tmp_path, "validation/rewards/margins")] == [15, 30]
    assert logged(tmp_path, "validation/rewards/margins")[-1][1] > 1


def saves(folder, checkpoints):
    return Saves(folder / "checkpoints", 5, lambda: {"same": 1}, checkpoints.append)


def test_a_resumed_training_continues_to_the_last_bit_and_reads_the_kept_reference(base, tmp_path, monkeypatch):
    rows, checkpoints = pairs_of(LENGTHS), []
    settings = {
        "rows": rows,
        "objective": "dpo",
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "save_steps": 3,
        "options": load_method("adaptation", "lora").Options(rank=4, alpha=8.0),
    }
    _, whole = run(base, tmp_path / "whole", model=adapted(base, 0.1), saves=saves(tmp_path, checkpoints), **settings)
    third = next(checkpoint for checkpoint in checkpoints if checkpoint.step == 3)
    assert (third.folder / REFERENCE_FILE).exists()
    monkeypatch.setattr(ReferenceTrainer, "sequence_log_probs", lambda *_: pytest.fail("the reference is kept"))
    _, resumed = run(
        base, tmp_path / "resumed", model=adapted(base, 0.1), checkpoint=Checkpoint(third.folder, 3, {}), **settings
    )
    for (name, expected), (_, value) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(expected, value), name


def test_the_likelihoods_of_both_answers_before_training_are_recorded(base, tmp_path):
    rows = pairs_of(LENGTHS)
    model = adapted(base).eval()
    expected = []
    for side in ("input_ids", "rejected_ids"):
        nats = []
        for row in rows:
            ids, start = torch.tensor(row[side]), row["labels"].count(IGNORED)
            with torch.no_grad():
                log_probs = model(ids[None]).logits[0].log_softmax(-1)
            nats.append(-log_probs[start - 1 : -1].gather(1, ids[start:, None]).mean())
        expected.append(float(torch.stack(nats).mean()))
    run(base, tmp_path, rows=rows, model=adapted(base), objective="dpo", objective_options=DPO(), max_steps=1)
    for name, value in zip(("chosen", "rejected"), expected, strict=True):
        assert logged(tmp_path, f"train/reference_{name}_nats")[0][1] == pytest.approx(value, rel=1e-4)
