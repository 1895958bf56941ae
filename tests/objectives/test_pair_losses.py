"""The losses of pairs against the formulas of TRL and of the papers, on numbers alone."""

from types import SimpleNamespace

import pytest
import torch

from mlflow_finetune_plugin.objectives._pair_losses import LOSSES, dpo_loss, orpo_loss
from mlflow_finetune_plugin.training.row_trainers.pairs import PairLogProbs


def log_probs(**values) -> PairLogProbs:
    numbers_of = {
        "chosen": [-12.0, -3.0, -40.0],
        "rejected": [-9.0, -30.0, -41.0],
        "reference_chosen": [-13.0, -3.5, -39.0],
        "reference_rejected": [-8.0, -20.0, -41.5],
        "chosen_tokens": [4.0, 2.0, 20.0],
        "rejected_tokens": [3.0, 10.0, 21.0],
        **values,
    }
    return PairLogProbs(**{name: torch.tensor(numbers, requires_grad=False) for name, numbers in numbers_of.items()})


def test_the_sigmoid_loss_is_that_of_the_paper():
    losses = dpo_loss(["sigmoid"], [1.0], 0.1, 0.0)(log_probs())
    margins = [0.1 * ((-12 + 13) - (-9 + 8)), 0.1 * ((-3 + 3.5) - (-30 + 20)), 0.1 * ((-40 + 39) - (-41 + 41.5))]
    expected = [-torch.log(torch.sigmoid(torch.tensor(margin))).item() for margin in margins]
    assert losses.pairs.tolist() == pytest.approx(expected, abs=1e-6)
    assert losses.tokens == 0
    assert losses.chosen_rewards.tolist() == pytest.approx([0.1, 0.05, -0.1], abs=1e-6)


def test_sft_is_the_sum_over_the_tokens_of_the_better_answers():
    losses = dpo_loss(["sigmoid", "sft"], [1.0, 0.5], 0.1, 0.0)(log_probs())
    assert float(losses.tokens) == pytest.approx(0.5 * (12 + 3 + 40))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_falls_when_the_better_answer_gains_on_the_worse(name):
    """Its slope at the start, where both answers are as likely as under the reference, points to the better answer."""
    start = log_probs(reference_chosen=[-12.0, -3.0, -40.0], reference_rejected=[-9.0, -30.0, -41.0])
    gap = torch.zeros(3, requires_grad=True)
    moved = PairLogProbs(**{**vars(start), "chosen": start.chosen + gap, "rejected": start.rejected - gap})
    dpo_loss([name], [1.0], 0.1, 0.1)(moved).pairs.sum().backward()
    assert (gap.grad < 0).all()


def test_orpo_is_that_of_trl():
    from trl.experimental.orpo import ORPOTrainer

    p = log_probs()
    trl = SimpleNamespace(beta=0.1, accelerator=SimpleNamespace(device="cpu"))
    expected, *_ = ORPOTrainer.odds_ratio_loss(trl, p.chosen / p.chosen_tokens, p.rejected / p.rejected_tokens)
    losses = orpo_loss(0.1)(p)
    assert losses.pairs.tolist() == pytest.approx((-expected).tolist(), abs=1e-6)
    assert float(losses.tokens) == pytest.approx(12 + 3 + 40)


def test_orpo_has_a_gradient_where_an_answer_is_certain():
    chosen = torch.tensor([-1e-9, 0.0, -200.0], requires_grad=True)
    losses = orpo_loss(0.1)(PairLogProbs(**{**vars(log_probs()), "chosen": chosen}))
    losses.pairs.sum().backward()
    assert torch.isfinite(losses.pairs).all()
    assert torch.isfinite(chosen.grad).all()
