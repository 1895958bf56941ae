"""The trainers of preference pairs: a better and a worse answer to the same prompt.

Every loss of pairs is a function of the log-probabilities of the two answers, and of those that the model gave them before
training, the *reference*. A pair stays in one micro-batch; packing, division out of memory and several processes are those
of ``MicroBatchTrainer``. Until the first step an adapter answers as its base does, or as the version that it continues, so
the reference needs no second model: it is computed once, before training, and kept with every checkpoint.

The loss of a reward model is a function of two rewards: the scores of the last tokens of both answers, each the end of its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mlflow_finetune_plugin.internals.transformers import last_rewards
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.training.alarms import report_unlikely_answers
from mlflow_finetune_plugin.training.micro_batches import MicroBatchTrainer, loss_tokens, sequence
from mlflow_finetune_plugin.training.packing import Batch, Row
from mlflow_finetune_plugin.training.reference import ReferenceTrainer

Pair = tuple[Row, Row, torch.Tensor]
"""The better answer, the worse answer, and the reference log-probabilities of both, (2,), in nats."""


@dataclass(frozen=True)
class PairLogProbs:
    """Sums of log-probabilities in nats over the tokens of each answer, and the number of those tokens: all (pairs,)."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    reference_chosen: torch.Tensor
    reference_rejected: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor


@dataclass(frozen=True)
class PairLosses:
    """The losses of some pairs.

    Attributes:
        pairs: The loss of each pair, (pairs,). The step's loss has their mean.
        tokens: The loss summed over the tokens of the better answers, a scalar. The step's loss has the mean over these tokens.
        chosen_rewards: What the loss compares for the better answers, (pairs,), for the log.
        rejected_rewards: The same for the worse answers, (pairs,).
    """

    pairs: torch.Tensor
    tokens: torch.Tensor
    chosen_rewards: torch.Tensor
    rejected_rewards: torch.Tensor


PairLoss = Callable[[PairLogProbs], PairLosses]


class PairTrainer(ReferenceTrainer):
    """The trainer that divides a step of pairs itself. A subclass sets ``pair_loss``."""

    FIGURES = (
        "rewards/chosen",
        "rewards/rejected",
        "rewards/accuracies",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
    )
    pair_loss: PairLoss
    _tokens_a_pair: float = 1.0

    @classmethod
    def of(cls, loss: PairLoss) -> type[PairTrainer]:
        """Return the trainer for this loss."""
        return type(cls.__name__, (cls,), {"pair_loss": staticmethod(loss)})

    @staticmethod
    def collate(features: Sequence[dict[str, Any]]) -> dict[str, list[Pair]]:
        """Return the pairs of a step without padding."""
        return {"rows": [_pair(row) for row in features]}

    def sequences(self, row: Pair) -> tuple[Row, ...]:
        """Return both answers of a pair, each after its prompt."""
        return row[:2]

    def items(self, row: Pair) -> int:
        """Return 1: the loss of a step is a mean over its pairs."""
        return 1

    def describe_reference(self, report: Report) -> None:
        """Report how unlikely the reference finds both answers of the training pairs, in nats per token."""
        tokens = [[loss_tokens(labels) for _, labels in pair[:2]] for pair in map(_pair, self.train_dataset)]
        nats = -self.reference["train"].double() / torch.tensor(tokens, dtype=torch.float64)  # (pairs, 2)
        report_unlikely_answers(nats.numpy(), report)

    def before_step(self, model: torch.nn.Module, rows: list[Pair]) -> None:
        """Count the tokens of the better answers, over which some losses are a mean."""
        self._tokens_a_pair = sum(loss_tokens(chosen[1]) for chosen, _, _ in rows) / len(rows)

    def _loss(self, model: torch.nn.Module, rows: list[Pair], num_items: torch.Tensor | int) -> torch.Tensor:
        batch = self._batch(rows)
        log_probs, more = self._log_probs(model, batch)
        sums = batch.sums(log_probs, 2 * len(rows)).view(-1, 2)
        tokens = batch.sums(torch.ones_like(log_probs), 2 * len(rows)).view(-1, 2)
        reference = torch.stack([reference for _, _, reference in rows]).to(sums.dtype)
        losses = self.pair_loss(PairLogProbs(*sums.T, *reference.T, *tokens.T))
        counts = self._counts[self._mode]
        counts.tokens += self._tokens(rows)
        counts.add_rows(
            {
                "rewards/chosen": losses.chosen_rewards,
                "rewards/rejected": losses.rejected_rewards,
                "rewards/accuracies": (losses.chosen_rewards > losses.rejected_rewards).float(),
                "rewards/margins": losses.chosen_rewards - losses.rejected_rewards,
                "logps/chosen": sums[:, 0],
                "logps/rejected": sums[:, 1],
            }
        )
        return (losses.pairs.sum() + losses.tokens / self._tokens_a_pair + more) / num_items


def _pair(row: Mapping[str, Any]) -> Pair:
    return (
        sequence(row["input_ids"], row["labels"]),
        sequence(row["rejected_ids"], row["rejected_labels"]),
        row.get("reference", torch.zeros(2)),
    )


RewardLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps the rewards of better and worse answers and the margins of their pairs to the loss of each pair, all (pairs,)."""

ScoredPair = tuple[Row, Row, torch.Tensor]
"""The better answer, the worse answer, and by how much the better one should win, a scalar."""


class RewardTrainer(MicroBatchTrainer):
    """The trainer of pairs whose loss compares two rewards. A subclass sets ``reward_loss``.

    ``min_reward`` and ``max_reward`` are the lower and the higher reward of a pair, averaged over pairs, so that they do not
    depend on how a step is divided. TRL's are those of a batch.
    """

    FIGURES = ("accuracy", "margin", "min_reward", "mean_reward", "max_reward")
    reward_loss: RewardLoss

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        head = self.model.get_base_model().score
        for parameter in head.parameters():  # TRL casts what is trained on a quantised base to bfloat16
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    @classmethod
    def of(cls, loss: RewardLoss) -> type[RewardTrainer]:
        """Return the trainer for this loss."""
        return type(cls.__name__, (cls,), {"reward_loss": staticmethod(loss)})

    @staticmethod
    def collate(features: Sequence[dict[str, Any]]) -> dict[str, list[ScoredPair]]:
        """Return the pairs of a step without padding."""
        return {"rows": [_scored_pair(row) for row in features]}

    def sequences(self, row: ScoredPair) -> tuple[Row, ...]:
        """Return both answers of a pair, each after its prompt."""
        return row[:2]

    def items(self, row: ScoredPair) -> int:
        """Return 1: the loss of a step is a mean over its pairs."""
        return 1

    def _loss(self, model: torch.nn.Module, rows: list[ScoredPair], num_items: torch.Tensor | int) -> torch.Tensor:
        sequences = [sequence for row in rows for sequence in self.sequences(row)]
        batch = self.batch_of(sequences)
        rewards = last_rewards(model.get_base_model(), batch.inputs, _last_tokens(sequences, batch)).view(-1, 2)  # type: ignore[operator]
        chosen, rejected = rewards.T
        margins = torch.stack([margin for _, _, margin in rows])
        counts = self._counts[self._mode]
        counts.tokens += self._tokens(rows)
        counts.add_rows(
            {
                "accuracy": (chosen > rejected).float(),
                "margin": chosen - rejected,
                "min_reward": rewards.min(dim=1).values,
                "mean_reward": rewards.mean(dim=1),
                "max_reward": rewards.max(dim=1).values,
            }
        )
        return self.reward_loss(chosen, rejected, margins).sum() / num_items


def _last_tokens(sequences: Sequence[Row], batch: Batch) -> torch.Tensor:
    """Return the position of each sequence's last token in the flattened batch, (sequences,)."""
    ids = batch.inputs["input_ids"]
    lengths = torch.tensor([len(row_ids) for row_ids, _ in sequences], device=ids.device)
    if batch.is_packed:
        return lengths.cumsum(0) - 1
    return torch.arange(len(sequences), device=ids.device) * ids.shape[1] + lengths - 1


def _scored_pair(row: Mapping[str, Any]) -> ScoredPair:
    return (
        _to_the_end(row["input_ids"], row["labels"]),
        _to_the_end(row["rejected_ids"], row["rejected_labels"]),
        torch.tensor(float(row.get("margin") or 0.0)),
    )


def _to_the_end(ids: Sequence[int], labels: Sequence[int]) -> Row:
    """Return a sequence up to its end-of-turn token, which is the last one that carries loss. Templates put a line break behind."""
    end = len(labels)
    while end and labels[end - 1] < 0:
        end -= 1
    return sequence(ids[:end], labels[:end])
