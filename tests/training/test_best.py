"""The weights that were best on held-out rows are the ones that are kept, also across a resumption; and training ends in time."""

import pytest
import torch
from tiny_bases import tiny_base
from training.trained import LENGTHS, adapted, events, logged, naive_loss, rows_of, run

from mlflow_finetune_plugin.training.checkpoints import opened
from mlflow_finetune_plugin.training.saving import Saves
from mlflow_finetune_plugin.training.weights import trained_weights

pytestmark = pytest.mark.train

HELD_OUT = [(4, 2), (3, 6), (9, 3)]
"""Random tokens: learning others by heart soon makes them less likely."""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


def overfitted(base, folder, checkpoint=None, **settings):
    values = {
        "num_train_epochs": 10.0,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.1,
        "eval_steps": 2,
        "save_steps": 8,
        "load_best_model_at_end": True,
    }
    return run(
        base,
        folder,
        rows=rows_of(LENGTHS),
        eval_rows=rows_of(HELD_OUT),
        model=adapted(base),
        saves=Saves(folder / "checkpoints", 9, dict, lambda saved: None),
        checkpoint=checkpoint,
        **{**values, **settings},
    )


def test_best_weights_are_kept_also_when_the_run_was_resumed_after_them(base, tmp_path):
    result, model = overfitted(base, tmp_path / "whole")
    best = min(result.eval_losses, key=lambda point: point[1])
    assert result.best_step == best[0] < result.steps == 20
    with torch.inference_mode():
        assert float(naive_loss(model.eval(), rows_of(HELD_OUT))) == pytest.approx(best[1], abs=1e-5)
    later = min(step for step in (8, 16) if step > best[0])
    again, resumed = overfitted(
        base, tmp_path / "again", opened(tmp_path / "whole" / "checkpoints" / f"checkpoint-{later}")
    )
    assert again.best_step == best[0]
    for name, tensor in trained_weights(resumed).items():
        assert torch.equal(tensor, trained_weights(model)[name]), name


def test_training_ends_when_it_no_longer_improves(base, tmp_path):
    result, _ = overfitted(base, tmp_path, early_stopping_patience=2)
    losses = [loss for _, loss in result.eval_losses]
    assert result.steps < 20
    assert losses.index(min(losses)) == len(losses) - 3
    assert any("early stopping at step" in event["text"] for event in events(tmp_path, "note"))
    assert logged(tmp_path, "eval_loss") == result.eval_losses
