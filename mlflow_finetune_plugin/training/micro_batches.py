"""The trainer: TRL's SFTTrainer, with each optimizer step divided into micro-batches here.

That avoids padding and allows smaller micro-batches when memory is short. One batch of the data loader holds all rows of
an optimizer step, of all processes, and each process computes its share. Loss and gradient are sums over micro-batches,
divided by the loss tokens of the whole step, and summed over processes.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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

    def __init__(
        self,
        *,
        micro_batches: MicroBatches,
        on_smaller: Callable[[MicroBatches], None],
        processes: Processes = ALONE,
        **arguments: Any,
    ) -> None:
        super().__init__(data_collator=as_rows, **arguments)
        check_sft_trainer(self)
        self.micro_batches = micro_batches
        self.processes = processes
        self.tokens_seen = 0
        self.loss_tokens_seen = 0
        self._counts = {"train": _Counts(), "eval": _Counts()}
        self._step_items: torch.Tensor | int = 1
        self._step_rows = 1
        self._on_smaller = on_smaller

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int = 1
    ) -> torch.Tensor:
        """Accumulate the gradient of a step and return its loss over all processes, a scalar."""
        rows: list[Row] = self._prepare_inputs(inputs)["rows"]
        if self.processes.count > 1:
            self.processes.check_same(checksum(ids for ids, _ in rows), "the rows of a step")
        share_rows = [rows[i] for i in self.processes.share([len(ids) for ids, _ in rows])]
        self._step_rows = len(rows)
        before = self._counts["train"]
        self._counts["train"] = _Counts()
        with self.processes.own_random_numbers(self.args.device, seed=self.args.seed, step=self.state.global_step):
            loss = self._share_loss(model, share_rows, num_items_in_batch)
        if self.processes.count > 1:
            self.processes.sum_gradients(model.parameters())
            loss = torch.tensor(self._summed("train", float(loss)), device=loss.device)
        self._counts["train"].add(before)
        return loss

    def _summed(self, mode: str, loss: float) -> float:
        """Return the loss summed over all processes; do the same with the counts."""
        counts = self._counts[mode]
        loss, *numbers = self.processes.sums([loss, counts.right, counts.scored, counts.tokens])
        self._counts[mode] = _Counts(*map(int, numbers))
        return loss

    def _share_loss(self, model: torch.nn.Module, rows: list[Row], num_items: torch.Tensor | int) -> torch.Tensor:
        """Return the loss of this process's share of the rows. Out of memory it restarts with smaller micro-batches, which other processes do not notice."""
        lengths = [len(ids) for ids, _ in rows]
        while True:
            state, counts = random_state(self.args.device), replace(self._counts["train"])
            failure = ""
            try:
                return self._accumulate(model, rows, lengths, num_items)
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

    def _accumulate(
        self, model: torch.nn.Module, rows: list[Row], lengths: list[int], num_items: torch.Tensor | int
    ) -> torch.Tensor:
        model.train()
        parts = self.micro_batches.divide(lengths)
        self.current_gradient_accumulation_steps = len(parts)
        self._step_items = num_items
        total = torch.zeros((), device=self.args.device)
        for part in parts:
            with self.compute_loss_context_manager():
                loss = self._loss(model, [rows[i] for i in part], num_items)
            self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _loss(self, model: torch.nn.Module, rows: list[Row], num_items: torch.Tensor | int) -> torch.Tensor:
        """Return the summed loss of the rows divided by ``num_items``, a scalar.

        It must not communicate with other processes: they have another number of micro-batches, so a collective call
        would block without a partner.
        """
        packs = self.micro_batches.batching == "packed"
        smooths = self.args.label_smoothing_factor > 0 and self.args.loss_type == "nll"
        batch = pack(rows) if packs else pad(rows, self.processing_class.pad_token_id)
        if ((packs and self.args.device.type == "cpu") or smooths) and not self.aux_loss_enabled:
            loss = self._loss_of_logits(model, batch)
        else:
            loss = self._loss_of_fused_head(model, batch)
        self._counts[self._mode].tokens += sum(len(ids) for ids, _ in rows)
        return loss / num_items

    def _loss_of_logits(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return TRL's loss from the logits of scored tokens only. Without Triton, TRL's fused head computes those of all tokens."""
        if batch.is_packed:
            logits = model(**batch.inputs, logits_to_keep=batch.keep, use_cache=False).logits[0]
        else:
            logits = model(**batch.inputs, use_cache=False).logits.flatten(0, 1)[batch.keep]
        logits = logits.float()  # (scored tokens, vocabulary)
        self._counts[self._mode].score(logits.detach().argmax(-1) == batch.targets)
        smoothing = self.args.label_smoothing_factor
        if smoothing > 0 and self.args.loss_type == "nll":
            return functional.cross_entropy(logits, batch.targets, reduction="sum", label_smoothing=smoothing)
        return self.summed_loss(-functional.cross_entropy(logits, batch.targets, reduction="none"))

    def summed_loss(self, log_probs: torch.Tensor) -> torch.Tensor:
        """Return the loss, summed over tokens. An objective's own trainer overrides this.

        Args:
            log_probs: log-probabilities of the scored tokens in nats, (scored tokens,), float32.
        """
        if self.args.loss_type == "dft":  # Dynamic Fine-Tuning (arXiv 2508.05629)
            return -(log_probs * log_probs.exp().detach()).sum()
        return -log_probs.sum()

    def _loss_of_fused_head(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        more = {"output_router_logits": True} if self.aux_loss_enabled else {}
        outputs = model(**batch.inputs, **more, labels=batch.labels, fused_lm_head=True, use_cache=False)
        log_probs = outputs.log_probs[outputs.label_mask]  # (scored tokens,)
        self._counts[self._mode].score(outputs.is_top1[outputs.label_mask])
        loss = self.summed_loss(log_probs)
        if self.aux_loss_enabled and self._mode == "train":
            # The auxiliary loss is a mean over a micro-batch; weigh it so that the step gets the mean over its micro-batches.
            sharers = min(self.processes.count, self._step_rows)
            weight = self.router_aux_loss_coef / self.current_gradient_accumulation_steps / sharers
            loss = loss + weight * outputs.aux_loss * self._step_items
        return loss

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add accuracy and tokens since the last log, of all processes."""
        counts = self._counts[self._mode]
        self._counts[self._mode] = _Counts()
        if self._mode == "train":
            self.tokens_seen += counts.tokens
            self.loss_tokens_seen += counts.scored
        figures = {"mean_token_accuracy": counts.right / max(1, counts.scored), "num_tokens": float(self.tokens_seen)}
        logs.update({f"eval_{key}": value for key, value in figures.items()} if self._mode == "eval" else figures)
        super().log(logs, start_time)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        """Return the loss tokens of the step over all processes: each process has drawn every row of the step."""
        count = sum(loss_tokens(labels) for batch in batch_samples for _, labels in batch["rows"])
        return torch.tensor(count, device=device)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: Trainer's estimate needs a single tensor of token ids, which does not exist here."""
        return 0

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return the mean loss over all loss tokens of the validation rows (Trainer's own is a mean of batch means)."""
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
        step = self.args.per_device_eval_batch_size
        total, count = 0.0, 0
        for start in range(0, len(dataset), step):
            rows = self._prepare_inputs(as_rows([dataset[i] for i in range(start, min(start + step, len(dataset)))]))[
                "rows"
            ]
            for part in self.micro_batches.divide([len(ids) for ids, _ in rows])[rank::processes]:
                chosen = [rows[i] for i in part]
                with torch.no_grad(), self.compute_loss_context_manager():
                    total += float(self._loss(self.model, chosen, 1))
                count += sum(loss_tokens(labels) for _, labels in chosen)
        return self._summed("eval", total), int(self.processes.sums([count])[0])


@dataclass
class _Counts:
    """Tokens since the last log, of all processes; while a step is computed, of this process alone."""

    right: int = 0
    scored: int = 0
    tokens: int = 0

    def score(self, right: torch.Tensor) -> None:
        self.right += int(right.sum())
        self.scored += right.numel()

    def add(self, other: _Counts) -> None:
        self.right += other.right
        self.scored += other.scored
        self.tokens += other.tokens


def as_rows(features: Sequence[dict[str, Any]]) -> dict[str, list[Row]]:
    """Collate rows without padding; each micro-batch is padded or packed when it is computed."""
    return {"rows": [(torch.tensor(row["input_ids"]), torch.tensor(row["labels"])) for row in features]}


def loss_tokens(labels: torch.Tensor) -> int:
    """Return how many labels are scored. The first never is, because no token predicts it."""
    return int((labels[1:] != IGNORED_LABEL).sum())
