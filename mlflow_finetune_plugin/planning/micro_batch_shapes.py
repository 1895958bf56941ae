"""Predict the micro-batches of a run: draw and divide its rows as training does, by their lengths only."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import datasets
import numpy as np
import pyarrow.compute as pc

from mlflow_finetune_plugin.config.sections import TrainingSettings
from mlflow_finetune_plugin.data.tokens.token_file import IGNORED_LABEL
from mlflow_finetune_plugin.planning.step_trace import MicroBatch
from mlflow_finetune_plugin.training.packing import MicroBatches
from mlflow_finetune_plugin.training.processes import Processes

_STEPS = 2000


@dataclass(frozen=True)
class RowLengths:
    """Tokens and loss tokens of every training row, both (rows,)."""

    tokens: np.ndarray
    scored: np.ndarray

    @classmethod
    def of(cls, rows: datasets.Dataset) -> RowLengths:
        """Count the labels of each row; copies no row."""
        tokens, scored = [], []
        for table in rows.with_format("arrow").iter(batch_size=10_000):
            labels = table["labels"].combine_chunks()
            lengths = pc.list_value_length(labels).to_numpy().astype(np.int64)
            flat = labels.flatten().to_numpy() != IGNORED_LABEL
            starts = np.concatenate([[0], lengths.cumsum()[:-1]])
            counts = (
                np.add.reduceat(flat, starts, dtype=np.int64) - flat[starts]
            )  # a row's first token is predicted by nothing
            tokens.append(lengths)
            scored.append(counts)
        return cls(np.concatenate(tokens), np.concatenate(scored))

    def clipped(self, max_length: int) -> RowLengths:
        """Return the lengths with every row cut at ``max_length`` tokens."""
        return RowLengths(np.minimum(self.tokens, max_length), np.minimum(self.scored, max_length))


@dataclass(frozen=True)
class Shapes:
    """The micro-batches with the most tokens and the most loss tokens, a mean one, and their mean number per step."""

    largest: tuple[MicroBatch, ...]
    mean: MicroBatch
    per_step: float
    steps: int
    tokens: int
    """Tokens of all steps, without padding."""


def steps_of(training: TrainingSettings, rows: int, processes: int = 1) -> int:
    """Return the optimizer steps of the whole run, as Trainer counts them."""
    if training.max_steps is not None:
        return training.max_steps
    return ceil(ceil(rows / _rows_a_step(training, processes)) * float(training.num_train_epochs))


def shapes_of(lengths: RowLengths, training: TrainingSettings, *, on_gpu: bool, processes: int = 1) -> Shapes:
    """Draw up to 2,000 steps with the run's seed. The order differs from the trainer's, the distribution does not.

    The micro-batches are those of the first process, which has the most work.
    """
    first = Processes(0, processes)
    rng = np.random.default_rng(training.seed)
    rows = len(lengths.tokens)
    step_rows = min(rows, _rows_a_step(training, processes))
    steps = steps_of(training, rows, processes)
    assert training.batching != "auto"
    division = MicroBatches(
        training.batching, int(training.per_device_train_batch_size), int(training.max_batch_tokens)
    )
    parts: list[tuple[int, int, int]] = []  # rows, tokens computed, loss tokens
    drawn = tokens = 0
    while drawn < min(steps, _STEPS):
        order = rng.permutation(rows)
        for start in range(0, rows, step_rows):
            if drawn == min(steps, _STEPS):
                break
            chosen = order[start : start + step_rows]
            tokens += int(lengths.tokens[chosen].sum())
            chosen = chosen[first.share(lengths.tokens[chosen].tolist())]
            share_lengths = lengths.tokens[chosen].tolist()
            for part in division.divide(share_lengths):
                parts.append((len(part), division.size(part, share_lengths), int(lengths.scored[chosen[part]].sum())))
            drawn += 1
    table = np.array(parts)
    packs = training.batching == "packed"
    loss = "all_logits" if training.label_smoothing_factor and not packs else "fused"
    if packs and (not on_gpu or training.label_smoothing_factor):
        loss = "logits"

    def shape(row: np.ndarray) -> MicroBatch:
        number = max(1, round(float(row[0])))
        return MicroBatch(number, max(1, ceil(float(row[1]) / number)), max(1, ceil(float(row[2]))), packs, loss)  # type: ignore[arg-type]

    extremes = {int(table[:, 1].argmax()), int(table[:, 2].argmax())}
    return Shapes(
        largest=tuple(shape(table[i]) for i in sorted(extremes)),
        mean=shape(table.mean(axis=0)),
        per_step=len(parts) / drawn,
        steps=steps,
        tokens=round(tokens / drawn * steps),
    )


def _rows_a_step(training: TrainingSettings, processes: int) -> int:
    return int(training.per_device_train_batch_size) * int(training.gradient_accumulation_steps) * processes
