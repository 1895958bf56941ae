"""A training that goes on from a checkpoint ends where one that never stopped ends: same weights, same curve."""

import json
from pathlib import Path

import pytest
import torch
from tiny_bases import tiny_base
from training.trained import LENGTHS, adapted, all_trained, logged, rows_of, run

from mlflow_finetune_plugin.training.checkpoints import Checkpoint, in_folder, opened, step_of
from mlflow_finetune_plugin.training.saving import Saves
from mlflow_finetune_plugin.training.weights import trained_weights

pytestmark = pytest.mark.train

HELD_OUT = [(4, 2), (3, 6), (9, 3)]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


def saves(folder: Path, limit: int = 99) -> Saves:
    return Saves(folder / "checkpoints", limit, lambda: {"data": "abc"}, lambda checkpoint: None)


def trained(base: Path, folder: Path, checkpoint: Checkpoint | None = None, **settings):
    """Three epochs of four steps, dropout, a schedule, logging every five steps, evaluation every four."""
    values = {
        "num_train_epochs": 3.0,
        "per_device_train_batch_size": 2,
        "logging_steps": 5,
        "eval_steps": 4,
        "save_steps": 3,
    }
    return run(
        base,
        folder,
        rows=rows_of(LENGTHS),
        eval_rows=rows_of(HELD_OUT),
        saves=saves(folder),
        checkpoint=checkpoint,
        **{"model": adapted(base, dropout=0.2), **values, **settings},
    )


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    result, model = trained(base, folder)
    return folder, result, trained_weights(model)


@pytest.mark.parametrize("step", [3, 6, 9, 12])
def test_resumed_training_is_bit_equal(base, whole, tmp_path, step):
    folder, expected, weights = whole
    torch.manual_seed(99)  # whatever the process did before
    result, model = trained(base, tmp_path, opened(folder / "checkpoints" / f"checkpoint-{step}"))
    assert result.losses == expected.losses
    assert result.eval_losses == expected.eval_losses
    assert (result.steps, result.tokens) == (expected.steps, expected.tokens)
    for name, tensor in trained_weights(model).items():
        assert torch.equal(tensor, weights[name]), name
    for name in (
        "train/loss",
        "train/grad_norm",
        "train/learning_rate",
        "train/mean_token_accuracy",
        "train/tokens",
        "eval_loss",
    ):
        assert logged(tmp_path, name) == logged(folder, name), name


def test_resumed_full_fine_tuning_is_bit_equal(base, tmp_path):
    """With gradient checkpointing, which runs the forward pass of every layer again in the backward pass."""
    settings = {"model": all_trained(base), "gradient_checkpointing": True, "num_train_epochs": 2.0}
    expected, whole = trained(base, tmp_path / "whole", **settings)
    saved = opened(tmp_path / "whole" / "checkpoints" / "checkpoint-3")
    result, model = trained(base, tmp_path / "resumed", saved, **{**settings, "model": all_trained(base)})
    assert result.losses == expected.losses
    assert all(torch.equal(tensor, trained_weights(whole)[name]) for name, tensor in trained_weights(model).items())
    plain = {**settings, "model": all_trained(base), "gradient_checkpointing": False}
    unchecked, _ = trained(base, tmp_path / "plain", **plain)
    assert [loss for _, loss in unchecked.losses] == pytest.approx([loss for _, loss in expected.losses])


def test_checkpoints_are_sealed_and_the_oldest_go(base, tmp_path):
    run(
        base,
        tmp_path,
        rows=rows_of(LENGTHS),
        num_train_epochs=2.0,
        per_device_train_batch_size=2,
        save_steps=2,
        saves=saves(tmp_path, limit=2),
    )
    left = in_folder(tmp_path / "checkpoints")
    assert sorted(map(step_of, left)) == [6, 8]
    checkpoint = opened(tmp_path / "checkpoints" / "checkpoint-8")
    assert (checkpoint.step, checkpoint.fingerprint) == (8, {"data": "abc"})
    assert set(json.loads((checkpoint.folder / "manifest.json").read_text())["files"]) >= {
        "trainable.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "progress.json"
    }  # fmt: skip
    assert not list((tmp_path / "trainer").glob("checkpoint-*"))
