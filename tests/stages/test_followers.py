"""What the first process of a training hands over is what the others read."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from pipeline_runs import config_for
from tiny_bases import tiny_base

from mlflow_finetune_plugin.data.preparation import prepare
from mlflow_finetune_plugin.jobs.folder import JobFolder, ProcessId
from mlflow_finetune_plugin.planning.plan import data_request, make_plan, settle
from mlflow_finetune_plugin.stages import followers
from mlflow_finetune_plugin.training.checkpoints import Checkpoint
from mlflow_finetune_plugin.training.processes import PeerLostError


@pytest.fixture
def settled(tmp_path):
    training = {"max_steps": 3, "per_device_train_batch_size": "auto"}
    config = config_for(tmp_path, tiny_base(tmp_path / "base"), training=training, options={"rank": 4, "init": "pissa"})
    plan = make_plan(config, processes=2)
    data = prepare(data_request(plan), plan.renderer, tmp_path)
    data = replace(data, train=data.train.select([5, 3, 3, 0]))
    plan = settle(plan, train_rows=24, longest_row=50, eval_rows=data.eval_rows, layouts=["prompt_completion"])
    return plan, data


def test_task_is_read_as_it_was_handed_over(settled, tmp_path):
    plan, data = settled
    followers.hand_over(plan, data, Checkpoint(tmp_path / "checkpoint-4", 4, {}), tmp_path)
    task = followers._read(tmp_path / "task.json")
    assert task.config == plan.config
    assert task.base == plan.base
    assert task.method == plan.method
    assert task.train_rows["input_ids"] == data.train["input_ids"]
    assert task.eval_rows["labels"] == data.validation["labels"]
    assert (task.checkpoint.folder, task.checkpoint.step, task.processes) == (tmp_path / "checkpoint-4", 4, 2)


def test_one_process_makes_the_same_steps_with_more_accumulation(settled):
    plan, _ = settled
    alone = followers.alone(plan)
    assert (plan.rows_a_step, plan.processes) == (16, 2)
    assert (alone.rows_a_step, alone.processes) == (16, 1)


@pytest.mark.process
def test_waiting_ends_with_the_first_process(tmp_path):
    first = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"])
    job = JobFolder(tmp_path)
    job.work.mkdir()
    job.write("state", {"worker": ProcessId.of(first.pid).to_json()})
    with pytest.raises(PeerLostError, match="ended before training began"):
        followers.follow(job, 1)
    assert first.wait() == 0
