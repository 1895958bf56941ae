"""The trainer: TRL's SFTTrainer, with each optimizer step divided into micro-batches here.

That avoids padding and allows smaller micro-batches when memory is short. One batch of the data loader holds all rows of
an optimizer step, of all processes, and each process computes its share. Loss and gradient are sums over micro-batches,
divided by the items of the whole step (its loss tokens, or its rows), and summed over processes.

A *row* is what the objective's rows hold; here one sequence, a (token ids, labels) pair. Trainers of other objectives
(pairs.py) override the methods below "what a row is".
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.nn import functional
from trl import SFTTrainer

from mlflow_finetune_plugin.data.tokens.token_file import IGNORED_LABEL
from mlflow_finetune_plugin.errors import TrainingError
from mlflow_finetune_plugin.internals.trl import check_sft_trainer
from mlflow_finetune_plugin.training.memory import is_out_of_memory
from mlflow_finetune_plugin.training.packing import Batch, MicroBatches, Row, pack, pad
from mlflow_finetune_plugin.training.processes import ALONE, Processes, checksum, random_state, set_random_state


class MicroBatchTrainer(SFTTrainer):
    """The trainer that divides a step itself. Its ``per_device_train_batch_size`` counts all rows of a step, of all processes.

    Args:
        micro_batches: how the rows of a step are divided.
        on_smaller: called with the new division after memory ran out.
        processes: the processes that share each step.
        arguments: those of ``SFTTrainer``.
    """

    FIGURES: tuple[str, ...] = ()
    """Names of the figures that ``_loss`` adds up for each row; the log has their means."""

    def __init__(
        self,
        *,
        micro_batches: MicroBatches,
        on_smaller: Callable[[MicroBatches], None],
        processes: Processes = ALONE,
        **arguments: Any,
    ) -> None:
        super().__init__(data_collator=self.collate, **arguments)
        check_sft_trainer(self)
        self.micro_batches = micro_batches
        self.processes = processes
        self.tokens_seen = 0
        self.loss_tokens_seen = 0
        self._counts = {"train": _Counts(), "eval": _Counts()}
        self._step_items: torch.Tensor | int = 1
        self._step_rows: list[Any] = []
        self._on_smaller = on_smaller

    # what a row is ---------------------------------------------------------------------------------------------------

    @staticmethod
    def collate(features: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
        """Return the rows of a step without padding; each micro-batch is padded or packed when it is computed."""
        return {"rows": [sequence(row["input_ids"], row["labels"]) for row in features]}

    def sequences(self, row: Any) -> tuple[Row, ...]:
        """Return the sequences that the model reads for a row."""
        return (row,)

    def items(self, row: Any) -> int:
        """Return how many items of the loss a row has: the loss of a step is a mean over them."""
        return loss_tokens(row[1])

    def _loss(self, model: torch.nn.Module, rows: list[Any], num_items: torch.Tensor | int) -> torch.Tensor:
        """Return the summed loss of the rows divided by ``num_items``, a scalar.

        It must not communicate with other processes: they have another number of micro-batches, so a collective call
        would block without a partner.
        """
        batch = self._batch(rows)
        smooths = self.args.label_smoothing_factor > 0 and self.args.loss_type == "nll"
        if smooths and not self.aux_loss_enabled:
            loss = self._smoothed_loss(model, batch)
        else:
            log_probs, more = self._log_probs(model, batch)
            loss = self.summed_loss(log_probs) + more
        self._counts[self._mode].tokens += self._tokens(rows)
        return loss / num_items

    def summed_loss(self, log_probs: torch.Tensor) -> torch.Tensor:
        """Return the loss, summed over tokens. An objective's own trainer overrides this.

        Args:
            log_probs: log-probabilities of the scored tokens in nats, (scored tokens,), float32.
        """
        if self.args.loss_type == "dft":  # Dynamic Fine-Tuning (arXiv 2508.05629)
            return -(log_probs * log_probs.exp().detach()).sum()
        return -log_probs.sum()

    def before_step(self, model: torch.nn.Module, rows: list[Any]) -> None:
        """Prepare a step from all its rows, before they are shared among processes."""

    # a step ----------------------------------------------------------------------------------------------------------

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int = 1
    ) -> torch.Tensor:
        """Accumulate the gradient of a step and return its loss over all processes, a scalar."""
        rows: list[Any] = self._prepare_inputs(inputs)["rows"]
        if self.processes.count > 1:
            ids = (ids for row in rows for ids, _ in self.sequences(row))
            self.processes.check_same(checksum(ids), "the rows of a step")
        self._step_rows = rows
        share_rows = [rows[i] for i in self.processes.share(self._lengths(rows))]
        before = self._counts["train"]
        self._counts["train"] = _Counts()
        self.before_step(model, rows)
        with self.processes.own_random_numbers(self.args.device, seed=self.args.seed, step=self.state.global_step):
            loss = self.retried(model, share_rows, lambda: self._accumulate(model, share_rows, num_items_in_batch))
        if self.processes.count > 1:
            self.processes.sum_gradients(model.parameters())
            loss = torch.tensor(self._summed("train", float(loss)), device=loss.device)
        self._counts["train"].add(before)
        return loss

    def _summed(self, mode: str, loss: float) -> float:
        """Return the loss summed over all processes; do the same with the counts."""
        counts = self._counts[mode]
        figures = [counts.figures.get(name, 0.0) for name in self.FIGURES]
        numbers = [loss, counts.right, counts.scored, counts.tokens, counts.rows, *figures]
        loss, right, scored, tokens, rows, *figures = self.processes.sums(numbers)
        self._counts[mode] = _Counts(
            int(right), int(scored), int(tokens), int(rows), dict(zip(self.FIGURES, figures, strict=True))
        )
        return loss

    def retried(self, model: torch.nn.Module, rows: list[Any], compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return what ``compute`` returns for this process's rows. Out of memory it restarts with smaller micro-batches, which other processes do not notice."""
        lengths = self._lengths(rows)
        while True:
            state, counts = random_state(self.args.device), self._counts["train"].copy()
            failure = ""
            try:
                return compute()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                failure = " ".join(str(error).split())[:300]
            self._make_smaller(
                model, lengths, failure
            )  # Outside the handler, because the traceback keeps the activations alive.
            # Dropout draws the same numbers again, and no token is counted twice.
            set_random_state(self.args.device, state)
            self._counts["train"] = counts

    def _make_smaller(self, model: torch.nn.Module, lengths: Sequence[int], failure: str) -> None:
        smaller = self.micro_batches.halved(lengths)
        if smaller is None:
            raise TrainingError(
                f"out of memory with a single row of {max(lengths)} tokens at a time; fix: lower training.max_length, "
                f"set training.gradient_checkpointing, or quantise the base with base_model.quantization ({failure})"
            )
        model.zero_grad()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.micro_batches = smaller
        self._on_smaller(smaller)

    def _accumulate(self, model: torch.nn.Module, rows: list[Any], num_items: torch.Tensor | int) -> torch.Tensor:
        model.train()
        parts = self.micro_batches.divide(self._lengths(rows))
        self.current_gradient_accumulation_steps = len(parts)
        self._step_items = num_items
        total = torch.zeros((), device=self.args.device)
        for part in parts:
            with self.compute_loss_context_manager():
                loss = self._loss(model, [rows[i] for i in part], num_items)
            self.accelerator.backward(loss)
            total += loss.detach()
        return total

    # a micro-batch ---------------------------------------------------------------------------------------------------

    def _lengths(self, rows: Sequence[Any]) -> list[int]:
        """Return the tokens that each row takes in a micro-batch, with the padding between its own sequences."""
        packs = self.micro_batches.batching == "packed"
        lengths = [[len(ids) for ids, _ in self.sequences(row)] for row in rows]
        return [sum(row) if packs else len(row) * max(row) for row in lengths]

    def _tokens(self, rows: Sequence[Any]) -> int:
        return sum(len(ids) for row in rows for ids, _ in self.sequences(row))

    def _batch(self, rows: Sequence[Any]) -> Batch:
        """Return the sequences of the rows, one after the other, as one batch."""
        sequences = [sequence for row in rows for sequence in self.sequences(row)]
        return self.batch_of(sequences)

    def batch_of(self, sequences: Sequence[Row]) -> Batch:
        """Return the sequences as one batch, packed or padded."""
        packs = self.micro_batches.batching == "packed"
        return pack(sequences) if packs else pad(sequences, self.processing_class.pad_token_id)

    def _log_probs(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Return the log-probabilities of the scored tokens in nats, (scored tokens,), and the auxiliary loss of experts."""
        if batch.is_packed and self.args.device.type == "cpu" and not self.aux_loss_enabled:
            logits = self._scored_logits(model, batch)
            return -functional.cross_entropy(logits, batch.targets, reduction="none"), 0.0
        return self._log_probs_of_fused_head(model, batch)

    def _scored_logits(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the logits of scored tokens only, (scored tokens, vocabulary). Without Triton, TRL's fused head computes those of all tokens."""
        if batch.is_packed:
            logits = model(**batch.inputs, logits_to_keep=batch.keep, use_cache=False).logits[0]
        else:
            logits = model(**batch.inputs, use_cache=False).logits.flatten(0, 1)[batch.keep]
        logits = logits.float()
        self._counts[self._mode].score(logits.detach().argmax(-1) == batch.targets)
        return logits

    def _smoothed_loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        logits, smoothing = self._scored_logits(model, batch), self.args.label_smoothing_factor
        return functional.cross_entropy(logits, batch.targets, reduction="sum", label_smoothing=smoothing)

    def _log_probs_of_fused_head(
        self, model: torch.nn.Module, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor | float]:
        more = {"output_router_logits": True} if self.aux_loss_enabled else {}
        outputs = model(**batch.inputs, **more, labels=batch.labels, fused_lm_head=True, use_cache=False)
        log_probs = outputs.log_probs[outputs.label_mask]
        self._counts[self._mode].score(outputs.is_top1[outputs.label_mask])
        if not (self.aux_loss_enabled and self._mode == "train"):
            return log_probs, 0.0
        # The auxiliary loss is a mean over a micro-batch; weigh it so that the step gets the mean over its micro-batches.
        sharers = min(self.processes.count, len(self._step_rows))
        weight = self.router_aux_loss_coef / self.current_gradient_accumulation_steps / sharers
        return log_probs, weight * outputs.aux_loss * self._step_items

    # log and evaluation ----------------------------------------------------------------------------------------------

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add accuracy, tokens and the objective's figures since the last log, of all processes."""
        counts = self._counts[self._mode]
        self._counts[self._mode] = _Counts()
        if self._mode == "train":
            self.tokens_seen += counts.tokens
            self.loss_tokens_seen += counts.scored
        figures = {"num_tokens": float(self.tokens_seen)}
        if counts.scored:
            figures["mean_token_accuracy"] = counts.right / counts.scored
        figures |= {name: total / max(1, counts.rows) for name, total in counts.figures.items()}
        logs.update({f"eval_{key}": value for key, value in figures.items()} if self._mode == "eval" else figures)
        super().log(logs, start_time)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        """Return the loss items of the step over all processes: each process has drawn every row of the step."""
        return torch.tensor(sum(self.items(row) for batch in batch_samples for row in batch["rows"]), device=device)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: Trainer's estimate needs a single tensor of token ids, which does not exist here."""
        return 0

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return the mean loss over all loss items of the validation rows (Trainer's own is a mean of batch means)."""
        started = time.monotonic()
        self.model.eval()
        total, count = self._evaluated_sums(self.eval_dataset if eval_dataset is None else eval_dataset)
        seconds = time.monotonic() - started
        metrics = {f"{metric_key_prefix}_loss": total / max(1, count), f"{metric_key_prefix}_runtime": seconds}
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _evaluated_sums(self, dataset: Any) -> tuple[float, int]:
        processes, rank = self.processes.count, self.processes.rank
        total, count = 0.0, 0
        for rows in self.chunks(dataset):
            self._step_rows = rows
            with torch.no_grad():
                self.before_step(self.model, rows)
            for part in self.micro_batches.divide(self._lengths(rows))[rank::processes]:
                chosen = [rows[i] for i in part]
                with torch.no_grad(), self.compute_loss_context_manager():
                    total += float(self._loss(self.model, chosen, 1))
                count += sum(self.items(row) for row in chosen)
        return self._summed("eval", total), int(self.processes.sums([count])[0])

    def chunks(self, dataset: Any) -> Any:
        """Yield the rows of a data set on the device, in its order, in lists of an evaluation's batch."""
        size = self.args.per_device_eval_batch_size
        for start in range(0, len(dataset), size):
            features = [dataset[i] for i in range(start, min(start + size, len(dataset)))]
            yield self._prepare_inputs(self.collate(features))["rows"]


@dataclass
class _Counts:
    """Tokens, rows and figures since the last log, of all processes; while a step is computed, of this process alone."""

    right: int = 0
    scored: int = 0
    tokens: int = 0
    rows: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    """Sums over ``rows``."""

    def score(self, right: torch.Tensor) -> None:
        self.right += int(right.sum())
        self.scored += right.numel()

    def add_rows(self, figures: dict[str, torch.Tensor]) -> None:
        """Add the figures of some rows, each (rows,)."""
        self.rows += len(next(iter(figures.values())))
        for name, values in figures.items():
            self.figures[name] = self.figures.get(name, 0.0) + float(values.detach().sum())

    def add(self, other: _Counts) -> None:
        self.right += other.right
        self.scored += other.scored
        self.tokens += other.tokens
        self.rows += other.rows
        for name, value in other.figures.items():
            self.figures[name] = self.figures.get(name, 0.0) + value

    def copy(self) -> _Counts:
        return replace(self, figures=dict(self.figures))


def sequence(ids: Sequence[int], labels: Sequence[int]) -> Row:
    """Return a sequence of the data set as tensors."""
    return torch.tensor(ids), torch.tensor(labels)


def loss_tokens(labels: torch.Tensor) -> int:
    """Return how many labels are scored. The first never is, because no token predicts it."""
    return int((labels[1:] != IGNORED_LABEL).sum())
