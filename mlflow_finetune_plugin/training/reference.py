"""The reference of a training: the log-probabilities that the model gave the rows before its first step.

Until the first step an adapter answers as its base does, or as the version that it continues. So the reference needs no second
model: it is computed once, with the model as it is, and kept with every checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.training.micro_batches import MicroBatchTrainer
from mlflow_finetune_plugin.training.packing import Row

REFERENCE_FILE = "reference.safetensors"
AS_TOKENS: dict[str, object] = {
    "max_length": None,
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "remove_unused_columns": False,
}
"""The arguments with which SFTTrainer takes rows as they are in the token file, with all their columns."""


class ReferenceTrainer(MicroBatchTrainer):
    """A trainer whose rows get the column ``reference``: (sequences,), float32, in nats."""

    reference: dict[str, torch.Tensor]
    """The reference of the rows for training (``train``) and for validation (``eval``), (rows, sequences)."""

    def reference_sequences(self, row: Any) -> tuple[Row, ...]:
        """Return the sequences of a row whose log-probabilities the loss compares."""
        return self.sequences(row)

    def add_reference(self, kept: Path | None, on_progress: Callable[[int, int], None]) -> None:
        """Compute the reference of training and validation rows with the model as it is, or read it from a checkpoint.

        Args:
            kept: the folder of a checkpoint; None computes the reference.
            on_progress: called with the rows that are done and all rows.
        """
        sides = {"train": self.train_dataset, "eval": self.eval_dataset}
        sides = {name: rows for name, rows in sides.items() if rows is not None}
        if kept is not None and (kept / REFERENCE_FILE).exists():
            self.reference = load_file(kept / REFERENCE_FILE)
        else:
            total, done = sum(map(len, sides.values())), 0
            self.reference = {}
            for name, rows in sides.items():
                self.reference[name] = self._of_all(rows)
                done += len(rows)
                on_progress(done, total)
        for name, rows in sides.items():
            setattr(self, f"{name}_dataset", WithReference(rows, self.reference[name]))

    def describe_reference(self, report: Report) -> None:
        """Report what the reference says of the training rows. By default nothing."""

    def save_reference(self, folder: Path) -> None:
        """Write the reference to a checkpoint."""
        save_file(self.reference, folder / REFERENCE_FILE)

    def _of_all(self, dataset: Any) -> torch.Tensor:
        """Return the log-probability of each row's sequences under the model as it is, float32, (rows, sequences), in nats."""
        results: list[torch.Tensor] = []
        for rows in self.chunks(dataset):
            sequences = [sequence for row in rows for sequence in self.reference_sequences(row)]
            results.append(self.sequence_log_probs(sequences).view(len(rows), -1))
        return torch.cat(results).float()

    def sequence_log_probs(self, sequences: list[Row]) -> torch.Tensor:
        """Return the log-probability of each sequence's scored tokens in nats, float64, (sequences,), without gradients.

        The processes share the work, and the model stays in evaluation mode.
        """
        self.model.eval()
        sums = torch.zeros(len(sequences), dtype=torch.float64)
        parts = self.micro_batches.divide([len(ids) for ids, _ in sequences])
        for part in parts[self.processes.rank :: self.processes.count]:
            with torch.no_grad(), self.compute_loss_context_manager():
                batch = self.batch_of([sequences[i] for i in part])
                log_probs, _ = self._log_probs(self.model, batch)
            sums[part] = batch.sums(log_probs, len(part)).double().cpu()
        self._counts["eval"] = type(self._counts["eval"])()  # what is counted here belongs to no log
        return torch.tensor(self.processes.sums(sums.tolist()), dtype=torch.float64)


class WithReference(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """The rows of a data set with their reference log-probabilities, float32, (rows, sequences)."""

    def __init__(self, rows: Any, reference: torch.Tensor) -> None:
        if len(rows) != len(reference):
            raise ValueError(f"{len(rows)} rows, but a reference of {len(reference)}")
        self.rows, self.reference = rows, reference

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.rows[index], "reference": self.reference[index]}
