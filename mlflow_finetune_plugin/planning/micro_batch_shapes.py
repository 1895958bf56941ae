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
    """Tokens and loss tokens of every sequence of the training rows, both (rows, sequences of a row).

    A pair has two sequences, any other row one.
    """

    tokens: np.ndarray
    scored: np.ndarray

    @classmethod
    def of(cls, rows: datasets.Dataset) -> RowLengths:
        """Count the labels of each row; copies no row."""
        columns = [name for name in ("labels", "rejected_labels") if name in rows.column_names]
        counted = [_counted(rows, column) for column in columns]
        return cls(*(np.stack(side, axis=1) for side in zip(*counted, strict=True)))

    def with_completions(self, number: int, tokens: int) -> RowLengths:
        """Return the lengths of ``number`` completions of each prompt, all as long as they may be."""
        prompts = np.repeat(self.tokens, number, axis=0)
        return RowLengths(prompts + tokens, np.full_like(prompts, tokens))

    def clipped(self, max_length: int) -> RowLengths:
        """Return the lengths with every sequence cut at ``max_length`` tokens."""
        return RowLengths(np.minimum(self.tokens, max_length), np.minimum(self.scored, max_length))

    @property
    def sequences(self) -> int:
        """The sequences of a row."""
        return int(self.tokens.shape[1])

    def in_micro_batch(self, *, packs: bool) -> np.ndarray:
        """Return the tokens that each row takes in a micro-batch, with the padding between its own sequences: (rows,)."""
        return self.tokens.sum(axis=1) if packs else self.sequences * self.tokens.max(axis=1)


def _counted(rows: datasets.Dataset, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens and loss tokens of the sequences whose labels are in this column, both (rows,)."""
    tokens, scored = [], []
    for table in rows.with_format("arrow").iter(batch_size=10_000):
        labels = table[column].combine_chunks()
        lengths = pc.list_value_length(labels).to_numpy().astype(np.int64)
        flat = labels.flatten().to_numpy() != IGNORED_LABEL
        starts = np.concatenate([[0], lengths.cumsum()[:-1]])
        counts = np.add.reduceat(flat, starts, dtype=np.int64) - flat[starts]  # nothing predicts a row's first token
        tokens.append(lengths)
        scored.append(counts)
    return np.concatenate(tokens), np.concatenate(scored)


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


def shapes_of(
    lengths: RowLengths,
    training: TrainingSettings,
    *,
    on_gpu: bool,
    processes: int = 1,
    gives_rewards: bool = False,
    sees: bool = False,
    steps: int | None = None,
) -> Shapes:
    """Draw up to 2,000 steps with the run's seed. The order differs from the trainer's, the distribution does not.

    The micro-batches are those of the first process, which has the most work. With ``gives_rewards`` the model scores each
    sequence instead of its tokens. A base that ``sees`` computes the logits of all tokens. ``steps`` are those of the run, where they do not follow from the rows.
    """
    first = Processes(0, processes)
    rng = np.random.default_rng(training.seed)
    rows = len(lengths.tokens)
    step_rows = min(rows, _rows_a_step(training, processes))
    steps = steps_of(training, rows, processes) if steps is None else steps
    assert training.batching != "auto"
    division = MicroBatches(
        training.batching, int(training.per_device_train_batch_size), int(training.max_batch_tokens)
    )
    parts: list[tuple[int, int, int]] = []  # rows, tokens computed, loss tokens
    packs = training.batching == "packed"
    row_tokens, widths = lengths.tokens.sum(axis=1), lengths.in_micro_batch(packs=packs)
    scored = lengths.scored.sum(axis=1)
    drawn = tokens = 0
    while drawn < min(steps, _STEPS):
        order = rng.permutation(rows)
        for start in range(0, rows, step_rows):
            if drawn == min(steps, _STEPS):
                break
            chosen = order[start : start + step_rows]
            tokens += int(row_tokens[chosen].sum())
            chosen = chosen[first.share(widths[chosen].tolist())]
            share_lengths = widths[chosen].tolist()
            for part in division.divide(share_lengths):
                sequences = lengths.sequences * len(part)
                parts.append((sequences, division.size(part, share_lengths), int(scored[chosen[part]].sum())))
            drawn += 1
    table = np.array(parts)
    loss = "all_logits" if sees or (training.label_smoothing_factor and not packs) else "fused"
    if packs and (not on_gpu or training.label_smoothing_factor):
        loss = "logits"
    if gives_rewards:
        loss = "rewards"

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
