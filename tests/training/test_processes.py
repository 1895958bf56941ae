"""A training shared by processes makes the optimiser steps that one process makes."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from tiny_bases import tiny_base
from training.shared_steps import together
from training.trained import LENGTHS, adapted, all_trained, events, logged, rows_of, run

from mlflow_finetune_plugin.adaptations import lora
from mlflow_finetune_plugin.errors import TrainingError
from mlflow_finetune_plugin.training.checkpoints import opened
from mlflow_finetune_plugin.training.micro_batches import MicroBatchTrainer
from mlflow_finetune_plugin.training.processes import PeerLostError, Processes
from mlflow_finetune_plugin.training.saving import Saves
from mlflow_finetune_plugin.training.weights import trained_weights

pytestmark = pytest.mark.process

ROWS = rows_of([*LENGTHS, (4, 4), (3, 2), (7, 1)])  # 11 rows: the last step of an epoch has fewer than a full one


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


def trained_by(
    count,
    base,
    folder,
    *,
    adapt=adapted,
    dropout=0.0,
    start=None,
    save_steps=None,
    options=None,
    prepare=None,
    codes=None,
    **settings,
):
    """Rank 0's weights after training by ``count`` processes with the same rows a step."""
    values = {
        "per_device_train_batch_size": 4 // count,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 2.0,
        "logging_steps": 1,
        "save_steps": save_steps,
        **settings,
    }

    def work(processes: Processes) -> None:
        if prepare is not None:
            prepare(processes, MicroBatchTrainer)
        own = folder / str(processes.rank)
        saves = Saves(own / "checkpoints", 9, dict, lambda saved: None) if save_steps else None
        model = adapt(base, dropout)
        run(
            base,
            own,
            rows=ROWS,
            eval_rows=ROWS,
            model=model,
            options=options,
            saves=saves if processes.is_first else None,
            checkpoint=opened(start) if start else None,
            processes=processes,
            **values,
        )
        torch.save(trained_weights(model), own / "weights.pt")

    folder.mkdir()
    assert together(count, folder, work) == (codes or [0] * count)
    return torch.load(folder / "0" / "weights.pt") if codes is None else {}


def notes(folder):
    return [event["text"] for event in events(folder, "note")]


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


def test_full_fine_tuning_is_shared_too(tmp_path):
    """With tied embeddings, whose one copy collects the gradients of both ends."""
    base = tiny_base(tmp_path / "gemma", "gemma2")
    settings = {"max_steps": 2, "batching": "packed", "adapt": all_trained}
    alone = trained_by(1, base, tmp_path / "1", **settings)
    shared = trained_by(2, base, tmp_path / "2", **settings)
    for name, weights in alone.items():
        torch.testing.assert_close(shared[name], weights, rtol=1e-4, atol=1e-5)  # Adam divides by gradients near 0


def test_dropout_goes_on_where_it_was(base, tmp_path):
    settings = {"dropout": 0.2, "max_steps": 5, "batching": "packed"}
    whole = trained_by(2, base, tmp_path / "whole", save_steps=3, **settings)
    saved = tmp_path / "whole" / "0" / "checkpoints" / "checkpoint-3"
    resumed = trained_by(2, base, tmp_path / "resumed", start=saved, **settings)
    assert all(torch.equal(resumed[name], weights) for name, weights in whole.items())
    assert history(tmp_path / "resumed" / "0", "train/loss") == history(tmp_path / "whole" / "0", "train/loss")
    assert not notes(tmp_path / "resumed" / "0")


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_another_number_of_processes_goes_on_with_the_same_rows(base, tmp_path, before, after):
    settings = {"max_steps": 5, "batching": "packed"}
    whole = trained_by(before, base, tmp_path / "whole", save_steps=2, **settings)
    saved = tmp_path / "whole" / "0" / "checkpoints" / "checkpoint-2"
    resumed = trained_by(after, base, tmp_path / "resumed", start=saved, **settings)
    for name, weights in whole.items():
        torch.testing.assert_close(resumed[name], weights, rtol=1e-4, atol=1e-6)
    (note,) = notes(tmp_path / "resumed" / "0")
    assert f"resumed with {after} instead of {before}" in note


def test_mixture_of_experts_loraplus_and_label_smoothing_are_shared_too(tmp_path):
    base = tiny_base(tmp_path / "moe", "qwen3_moe")
    settings = {"max_steps": 2, "batching": "packed", "label_smoothing_factor": 0.1}
    options = lora.Options(rank=4, alpha=8.0, loraplus_ratio=4.0)
    alone = trained_by(1, base, tmp_path / "1", options=options, **settings)
    shared = trained_by(2, base, tmp_path / "2", options=options, **settings)
    for name, weights in alone.items():
        torch.testing.assert_close(shared[name], weights, rtol=1e-4, atol=1e-5)  # Adam divides by gradients near 0


def test_best_weights_and_early_stopping_are_decided_alike(base, tmp_path):
    settings = {
        "max_steps": 12,
        "learning_rate": 5.0,
        "eval_steps": 1,
        "load_best_model_at_end": True,
        "early_stopping_patience": 2,
    }
    trained_by(2, base, tmp_path / "2", **settings)
    first, second = tmp_path / "2" / "0", tmp_path / "2" / "1"
    assert history(first, "eval_loss") == history(second, "eval_loss")
    assert len(history(first, "eval_loss")) < 12
    stopped, kept = notes(first)
    assert notes(second) == [stopped]
    assert "are kept" in kept
    assert (first / "trainer" / "best").exists()
    assert not (second / "trainer" / "best").exists()


def test_memory_short_on_one_process_changes_nothing(base, tmp_path):
    """The second process refuses its first pass, as an allocator would; only it computes its part again."""

    def refuse_once(processes, trainer_class):
        if processes.rank != 1:
            return
        loss, refused = trainer_class._loss, []

        def _loss(self, model, rows, num_items):
            if not refused and len(rows) > 1:
                refused.append(True)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
            return loss(self, model, rows, num_items)

        trainer_class._loss = _loss

    settings = {"max_steps": 3, "batching": "packed"}
    whole = trained_by(2, base, tmp_path / "whole", **settings)
    short = trained_by(2, base, tmp_path / "short", prepare=refuse_once, **settings)
    for name, weights in whole.items():
        torch.testing.assert_close(short[name], weights, rtol=1e-4, atol=1e-6)
    assert not notes(tmp_path / "short" / "0")
    assert "the step is repeated with micro-batches of" in notes(tmp_path / "short" / "1")[0]


@pytest.mark.fault
def test_sigterm_to_one_stops_all_after_the_same_step(base, tmp_path):
    def terminate_second(processes, trainer_class):
        if processes.rank == 1:
            step = trainer_class.training_step

            def training_step(self, *arguments):
                if self.state.global_step == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
                return step(self, *arguments)

            trainer_class.training_step = training_step

    codes = [-signal.SIGTERM, -signal.SIGTERM]
    trained_by(2, base, tmp_path / "2", prepare=terminate_second, codes=codes, max_steps=50, save_steps=100)
    assert [path.name for path in (tmp_path / "2" / "0" / "checkpoints").iterdir()] == ["checkpoint-3"]


def test_weights_that_differ_are_no_common_training(base, tmp_path):
    def work(processes):
        model = adapted(base)
        if processes.rank:
            next(p for p in model.parameters() if p.requires_grad).data[0, 0] += 1e-6
        with pytest.raises(TrainingError, match="the weights at the start of training differ"):
            run(base, tmp_path / str(processes.rank), rows=ROWS, model=model, processes=processes)

    assert together(2, tmp_path, work) == [0, 0]


def test_rows_that_differ_are_no_common_training(base, tmp_path):
    def work(processes):
        rows = ROWS.select(range(processes.rank, 8 + processes.rank))
        with pytest.raises(TrainingError, match="the rows of a step differ"):
            run(base, tmp_path / str(processes.rank), rows=rows, processes=processes, per_device_train_batch_size=2)

    assert together(2, tmp_path, work) == [0, 0]


@pytest.mark.fault
def test_a_process_that_is_killed_is_missed(base, tmp_path):
    def work(processes):
        if processes.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        with pytest.raises(PeerLostError):
            processes.sums([1.0])

    assert together(2, tmp_path, work) == [0, -signal.SIGKILL]


def test_shares_are_whole_and_even():
    lengths = [50, 3, 9, 40, 12, 7, 7, 30]
    shares = [Processes(rank, 3).share(lengths) for rank in range(3)]
    assert sorted(i for share in shares for i in share) == list(range(8))
    assert [sum(lengths[i] for i in share) for share in shares] == [50, 56, 52]
    assert [Processes(rank, 3).share([5]) for rank in range(3)] == [[0], [], []]
