"""The losses of preference pairs, with TRL's names and formulas: functions of the log-probabilities of two answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import logsigmoid

from mlflow_finetune_plugin.training.row_trainers.pairs import PairLogProbs, PairLosses

if TYPE_CHECKING:
    from mlflow_finetune_plugin.training.row_trainers.pairs import PairLoss

Loss = Callable[[torch.Tensor, torch.Tensor, PairLogProbs, float, float], torch.Tensor]
"""From the log-ratios to the reference of the better and the worse answers, both (pairs,), the log-probabilities, ``beta`` and
``label_smoothing``: the loss of each pair, (pairs,)."""


def _sigmoid(chosen: torch.Tensor, rejected: torch.Tensor, p: PairLogProbs, beta: float, e: float) -> torch.Tensor:
    """Rafailov et al. 2023 (arXiv 2305.18290), eq. 7."""
    return -logsigmoid(beta * (chosen - rejected))


def _hinge(chosen: torch.Tensor, rejected: torch.Tensor, p: PairLogProbs, beta: float, e: float) -> torch.Tensor:
    """SLiC (arXiv 2305.10425)."""
    return torch.relu(1 - beta * (chosen - rejected))


def _ipo(chosen: torch.Tensor, rejected: torch.Tensor, p: PairLogProbs, beta: float, e: float) -> torch.Tensor:
    """IPO (arXiv 2310.12036), eq. 17, with means over tokens as its authors confirmed to TRL."""
    return (chosen / p.chosen_tokens - rejected / p.rejected_tokens - 1 / (2 * beta)) ** 2


def _exo_pair(chosen: torch.Tensor, rejected: torch.Tensor, p: PairLogProbs, beta: float, e: float) -> torch.Tensor:
    """EXO (arXiv 2402.00856), eq. 16, for two answers."""
    margin = beta * (chosen - rejected)
    won, lost = logsigmoid(margin), logsigmoid(-margin)
    return won.exp() * (won - math.log1p(-e)) + lost.exp() * (lost - math.log(e))


def _nca_pair(chosen: torch.Tensor, rejected: torch.Tensor, p: PairLogProbs, beta: float, e: float) -> torch.Tensor:
    """NCA (arXiv 2402.05369)."""
    return -logsigmoid(beta * chosen) - 0.5 * logsigmoid(-beta * chosen) - 0.5 * logsigmoid(-beta * rejected)


def _robust(chosen: torch.Tensor, rejected: torch.Tensor, p: PairLogProbs, beta: float, e: float) -> torch.Tensor:
    """Robust DPO (arXiv 2403.00409); ``e`` is the share of pairs whose sides are swapped."""
    margin = beta * (chosen - rejected)
    return (-(1 - e) * logsigmoid(margin) + e * logsigmoid(-margin)) / (1 - 2 * e)


def _sppo_hard(chosen: torch.Tensor, rejected: torch.Tensor, p: PairLogProbs, beta: float, e: float) -> torch.Tensor:
    """SPPO (arXiv 2405.00675) with probability 1 for the winner."""
    return (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2


def _apo_zero(chosen: torch.Tensor, rejected: torch.Tensor, p: PairLogProbs, beta: float, e: float) -> torch.Tensor:
    """APO (arXiv 2408.06266), eq. 7: for better answers that are better than the model's own."""
    return 1 - torch.sigmoid(beta * chosen) + torch.sigmoid(beta * rejected)


def _apo_down(chosen: torch.Tensor, rejected: torch.Tensor, p: PairLogProbs, beta: float, e: float) -> torch.Tensor:
    """APO (arXiv 2408.06266), eq. 8: for better answers that are worse than the model's own. Both become less likely."""
    return torch.sigmoid(beta * chosen) + 1 - torch.sigmoid(beta * (chosen - rejected))


def _sigmoid_norm(chosen: torch.Tensor, rejected: torch.Tensor, p: PairLogProbs, beta: float, e: float) -> torch.Tensor:
    """The sigmoid loss of means over tokens, as in Tulu 3 (arXiv 2411.15124)."""
    return -logsigmoid(beta * (chosen / p.chosen_tokens - rejected / p.rejected_tokens))


LOSSES: dict[str, Loss] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "robust": _robust,
    "sppo_hard": _sppo_hard,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "sigmoid_norm": _sigmoid_norm,
}


def dpo_loss(loss_types: Sequence[str], weights: Sequence[float], beta: float, label_smoothing: float) -> PairLoss:
    """Return the weighted sum of these losses; ``sft`` is the mean negative log-probability of the better answers' tokens."""

    def loss(p: PairLogProbs) -> PairLosses:
        chosen, rejected = p.chosen - p.reference_chosen, p.rejected - p.reference_rejected
        pairs, tokens = torch.zeros_like(p.chosen), torch.zeros_like(p.chosen[0])
        for name, weight in zip(loss_types, weights, strict=True):
            if name == "sft":
                tokens = tokens - weight * p.chosen.sum()
            else:
                pairs = pairs + weight * LOSSES[name](chosen, rejected, p, beta, label_smoothing)
        return PairLosses(pairs, tokens, beta * chosen.detach(), beta * rejected.detach())

    return loss


def orpo_loss(beta: float) -> PairLoss:
    """Return ORPO's loss (arXiv 2403.07691, eqs. 4 to 7): the better answer is imitated, and its odds are raised above the worse one's."""

    def loss(p: PairLogProbs) -> PairLosses:
        chosen, rejected = p.chosen / p.chosen_tokens, p.rejected / p.rejected_tokens
        log_odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
        return PairLosses(
            -beta * logsigmoid(log_odds), -p.chosen.sum(), beta * chosen.detach(), beta * rejected.detach()
        )

    return loss


def _log1mexp(x: torch.Tensor) -> torch.Tensor:
    """Return log(1 - exp(x)) for x < 0, precise for small and for large x (Maechler 2012)."""
    x = x.clamp(max=-1e-6)  # a token of probability 1 would have infinite odds
    is_small = x > -math.log(2)
    # Each branch gets harmless values where the other is used: a gradient of 0 times infinity would be NaN.
    near = torch.log(-torch.expm1(torch.where(is_small, x, torch.full_like(x, -1.0))))
    far = torch.log1p(-torch.exp(torch.where(is_small, torch.full_like(x, -1.0), x)))
    return torch.where(is_small, near, far)
