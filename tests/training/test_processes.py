"""A training shared by processes makes the optimiser steps that one process makes."""

from __future__ import annotations

import pytest
import torch
from tiny_bases import tiny_base
from training.shared_steps import together
from training.trained import LENGTHS, adapted, logged, rows_of, run

from mlflow_finetune_plugin.training.processes import Processes
from mlflow_finetune_plugin.training.weights import trained_weights

ROWS = rows_of([*LENGTHS, (4, 4), (3, 2), (7, 1)])  # 11 rows: the last step of an epoch has fewer than a full one


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


def trained_by(count, base, folder, *, dropout=0.0, stagger=None, **settings):
    """Rank 0's weights after training by ``count`` processes of the same effective batch, all ranks checked."""
    values = {
        "per_device_train_batch_size": 4 // count,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 2.0,
        "logging_steps": 1,
        **settings,
    }

    def work(processes: Processes) -> None:
        own = folder / str(processes.rank)
        model = adapted(base, dropout)
        run(base, own, rows=ROWS, eval_rows=ROWS, model=model, processes=processes, **values)
        torch.save(trained_weights(model), own / "weights.pt")

    folder.mkdir()
    assert together(count, folder, work) == [0] * count
    return torch.load(folder / "0" / "weights.pt")


def history(folder, name):
    return [value for _, value in logged(folder, name)]


@pytest.mark.parametrize("batching", ["packed", "padded"])
def test_processes_make_the_steps_of_one(base, tmp_path, batching):
    alone = trained_by(1, base, tmp_path / "1", batching=batching, eval_steps=2)
    for count in (2, 4):
        shared = trained_by(count, base, tmp_path / str(count), batching=batching, eval_steps=2)
        for name, weights in alone.items():
            torch.testing.assert_close(shared[name], weights, rtol=1e-4, atol=1e-6)
        for name in ("train/loss", "train/grad_norm", "eval_loss"):
            mine, theirs = history(tmp_path / str(count) / "0", name), history(tmp_path / "1" / "0", name)
            assert mine == pytest.approx(theirs, rel=1e-4), name
            assert len(mine) >= 3
        for name in ("train/tokens", "train/mean_token_accuracy", "train/learning_rate"):
            assert history(tmp_path / str(count) / "0", name) == history(tmp_path / "1" / "0", name), name
