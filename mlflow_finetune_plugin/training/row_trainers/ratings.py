"""The trainer of rated answers: each is good or bad on its own.

KTO compares an answer's log-ratio to the reference with a mean: that of answers which belong to other prompts. Each row has a
fixed partner whose answer it borrows, drawn once by the seed; so the reference of the borrowed answers can be computed once, too,
and rows may be shuffled. The mean is taken over all rows of a step, before the step, without a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlflow_finetune_plugin.data.tokens.token_file import IGNORED_LABEL
from mlflow_finetune_plugin.training.micro_batches import sequence
from mlflow_finetune_plugin.training.packing import Row
from mlflow_finetune_plugin.training.reference import ReferenceTrainer

RatedRow = tuple[Row, Row | None, bool, torch.Tensor]
"""The answer after its prompt, the partner's answer after this prompt, whether the answer is good, and the reference
log-probabilities of both, (2,), in nats. Without a partner there is only the answer's."""

RatingLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""From the log-ratios to the reference, whether the answers are good, both (rows,), and the mean log-ratio of borrowed answers, a
scalar: the loss of each row, (rows,)."""


@dataclass(frozen=True)
class Ratings:
    """A loss of rated answers.

    Attributes:
        loss: The loss of each row.
        beta: Multiplies log-ratios to give rewards, for the log.
        borrows: Whether the loss reads the mean of borrowed answers.
    """

    loss: RatingLoss
    beta: float
    borrows: bool


class RatedTrainer(ReferenceTrainer):
    """The trainer that divides a step of rated answers itself. A subclass sets ``ratings``."""

    FIGURES = ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected", "kl", "rows/chosen")
    """For the log: ``chosen`` are good answers, ``rejected`` bad ones, as in TRL. Sums over the rows of each kind."""
    ratings: Ratings
    _kl: torch.Tensor

    @classmethod
    def of(cls, ratings: Ratings) -> type[RatedTrainer]:
        """Return the trainer for this loss."""
        return type(cls.__name__, (cls,), {"ratings": ratings})

    @staticmethod
    def collate(features: Sequence[dict[str, Any]]) -> dict[str, list[RatedRow]]:
        """Return the rows of a step without padding."""
        return {"rows": [_rated(row) for row in features]}

    def sequences(self, row: RatedRow) -> tuple[Row, ...]:
        """Return the answer after its prompt."""
        return (row[0],)

    def reference_sequences(self, row: RatedRow) -> tuple[Row, ...]:
        """Return the answer, and the borrowed one where the loss reads it."""
        return row[:1] if row[1] is None else (row[0], row[1])

    def items(self, row: RatedRow) -> int:
        """Return 1: the loss of a step is a mean over its rows."""
        return 1

    def add_reference(self, kept: Path | None, on_progress: Callable[[int, int], None]) -> None:
        """Let each row borrow the answer of its partner, then compute the reference of both."""
        if self.ratings.borrows:
            for name in ("train", "eval"):
                rows = getattr(self, f"{name}_dataset")
                if rows is not None:
                    setattr(self, f"{name}_dataset", Borrowing(rows, partners(len(rows), self.args.seed)))
        super().add_reference(kept, on_progress)

    def before_step(self, model: torch.nn.Module, rows: list[RatedRow]) -> None:
        """Compute the mean log-ratio of the borrowed answers of all rows of the step, at least 0."""
        self._kl = torch.zeros((), device=self.args.device)
        borrowed = [row[1] for row in rows if row[1] is not None]
        if borrowed:
            now = self.sequence_log_probs(borrowed)
            before = torch.stack([row[3][1] for row in rows]).double().cpu()
            self._kl = (now - before).mean().clamp(min=0).to(self.args.device, torch.float32)

    def _loss(self, model: torch.nn.Module, rows: list[RatedRow], num_items: torch.Tensor | int) -> torch.Tensor:
        batch = self._batch(rows)
        log_probs, more = self._log_probs(model, batch)
        sums = batch.sums(log_probs, len(rows))
        reference = torch.stack([row[3][0] for row in rows]).to(sums.dtype)
        is_good = torch.tensor([row[2] for row in rows], device=sums.device)
        ratios = sums - reference
        losses = self.ratings.loss(ratios, is_good, self._kl)
        counts = self._counts[self._mode]
        counts.tokens += self._tokens(rows)
        good, bad, rewards = is_good.float(), (~is_good).float(), self.ratings.beta * ratios
        counts.add_rows(
            {
                "rewards/chosen": rewards * good,
                "rewards/rejected": rewards * bad,
                "logps/chosen": sums * good,
                "logps/rejected": sums * bad,
                "kl": self._kl.expand(len(rows)),
                "rows/chosen": good,
            }
        )
        return (losses.sum() + more) / num_items

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Turn the sums into means over the good and over the bad answers, and add the margin."""
        figures, rows = self._counts[self._mode].figures, self._counts[self._mode].rows
        good = figures.pop("rows/chosen", 0.0)
        for name in ("rewards", "logps"):
            for kind, count in (("chosen", good), ("rejected", rows - good)):
                total = figures.pop(f"{name}/{kind}", 0.0)
                if count:
                    logs[self._named(f"{name}/{kind}")] = total / count
        names = [self._named(f"rewards/{kind}") for kind in ("chosen", "rejected")]
        if all(name in logs for name in names):
            logs[self._named("rewards/margins")] = logs[names[0]] - logs[names[1]]
        super().log(logs, start_time)

    def _named(self, figure: str) -> str:
        return figure if self._mode == "train" else f"eval_{figure}"


class Borrowing(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """The rows of a data set, each with the row whose answer it borrows."""

    def __init__(self, rows: Any, partner: np.ndarray) -> None:
        self.rows, self.partner = rows, partner

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, other = self.rows[index], self.rows[int(self.partner[index])]
        return {**row, **borrowed(row, other)}


def partners(count: int, seed: int) -> np.ndarray:
    """Return the row whose answer each row borrows: int64, (rows,). No row borrows its own, unless it is the only one."""
    order = np.random.default_rng(seed).permutation(count)
    partner = np.empty(count, dtype=np.int64)
    partner[order] = np.roll(order, 1)
    return partner


def borrowed(row: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return the columns of a row's prompt followed by the answer of another row, as long as the longer row at most."""
    start, (first, end) = _answer(row["labels"])[0], _answer(other["labels"])
    room = max(1, max(len(row["labels"]), len(other["labels"])) - start)
    answer = other["input_ids"][first:end][:room]
    return {
        "borrowed_ids": [*row["input_ids"][:start], *answer],
        "borrowed_labels": [IGNORED_LABEL] * start + list(answer),
    }


def _answer(labels: Sequence[int]) -> tuple[int, int]:
    """Return where the last scored part of a row starts and ends."""
    is_scored = np.asarray(labels) != IGNORED_LABEL
    end = len(labels) - int(is_scored[::-1].argmax())
    before = ~is_scored[:end][::-1]
    return (end - int(before.argmax()) if before.any() else 0), end


def _rated(row: Mapping[str, Any]) -> RatedRow:
    other = sequence(row["borrowed_ids"], row["borrowed_labels"]) if "borrowed_ids" in row else None
    return sequence(row["input_ids"], row["labels"]), other, row["is_good"], row.get("reference", torch.zeros(2))
