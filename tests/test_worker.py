"""A real training that goes wrong: the run says how, in one line, with traceback and log, and nothing is registered."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import REPOSITORY, Workplace, is_alive, make_workplace, pids, stop_jobs, wait_for

from mlflow_finetune_plugin.worker import reason_of

QUICKSTART = str(REPOSITORY / "recipes" / "quickstart")
REASON = "finetune.status_reason"
TWO_PROCESSES = ("-c", '{"processes_per_node": 2}')
needs_two_cores = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two processes need two cores")


def training_job(workplace: Workplace) -> Path:
    """The job folder once optimiser steps are made, and their loss is reported."""
    job = workplace.job()
    wait_for(
        lambda: "train/loss" in (job / "report.jsonl").read_text() if (job / "report.jsonl").exists() else None,
        120,
        "step",
    )
    return job


@pytest.mark.fault
@pytest.mark.process
def test_kill_9_of_a_training_worker_fails_the_run(workplace):
    process = workplace.start_finetune_run(QUICKSTART, "-e", "lora", "-P", "num_train_epochs=500")
    job = training_job(workplace)
    os.kill(pids(job)["worker"], signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    run = workplace.ended_run()
    assert run.info.status == "FAILED"
    assert "killed by" in run.data.tags[REASON]
    assert run.data.tags[REASON] in output
    assert run.data.metrics["train/loss"] > 0  # what was measured until then is kept
    assert not workplace.client().search_registered_models()


@pytest.mark.fault
@pytest.mark.process
@needs_two_cores
def test_kill_9_of_the_supervisor_lets_a_training_of_two_processes_finish_well(workplace):
    arguments = (
        "-P",
        "max_steps=60",
        "-P",
        "max_rows=20",
        "-P",
        "forgetting=false",
        "-P",
        "per_device_train_batch_size=8",
        *TWO_PROCESSES,
    )
    process = workplace.start_finetune_run(QUICKSTART, "-e", "lora", *arguments)
    job = training_job(workplace)
    os.kill(pids(job)["supervisor"], signal.SIGKILL)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert "batch 8 x 1 x 2 processes" in output
    assert not any(is_alive(pids(job)[name]) for name in ("worker", "worker-1"))
    run = workplace.ended_run()
    assert run.info.status == "FINISHED"
    history = workplace.client().get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in history][
        -1
    ] == 60  # nothing that the first supervisor had not carried over is lost


@pytest.mark.fault
@pytest.mark.process
@needs_two_cores
def test_kill_9_of_one_of_two_processes_fails_the_run_with_both(workplace):
    process = workplace.start_finetune_run(QUICKSTART, "-e", "lora", "-P", "max_steps=2000", *TWO_PROCESSES)
    job = training_job(workplace)
    processes = pids(job)
    os.kill(processes["worker-1"], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == 1
    run = workplace.ended_run()
    assert run.info.status == "FAILED"
    assert "process 1 of 2 of the worker was killed by SIGKILL" in run.data.tags[REASON]
    assert run.data.tags["finetune.processes"] == "2"
    # The command may return a moment before its supervisor has ended.
    wait_for(lambda: not any(is_alive(pid) for pid in processes.values()), 20, "end of all processes")


@pytest.mark.fault
def test_training_outlives_an_outage_of_its_tracking_server(tmp_path, server):
    workplace = make_workplace(tmp_path, server.uri)
    arguments = ["-P", "max_steps=60", "-P", "max_rows=40", "-P", "forgetting=false", "-P", "register=outlasting"]
    process = workplace.start_finetune_run(QUICKSTART, "-e", "lora", *arguments)
    job = training_job(workplace)
    server.stop()
    wait_for(
        lambda: '"proof' in (job / "report.jsonl").read_text() or '"step": 60' in (job / "report.jsonl").read_text(),
        200,
        "the training's end",
    )
    server.start()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    run = workplace.ended_run()
    assert run.info.status == "FINISHED"
    history = workplace.client().get_metric_history(run.info.run_id, "train/loss")
    steps = [metric.step for metric in history]
    assert steps == sorted(set(steps))
    assert steps[-1] == 60
    version = workplace.client().get_model_version_by_alias("outlasting", "challenger")
    assert version.run_id == run.info.run_id
    stop_jobs(workplace)


@pytest.mark.fault
@pytest.mark.process
def test_loss_that_is_no_number_fails_the_run(workplace):
    result = workplace.finetune_run(
        QUICKSTART, "-e", "lora", "-P", "learning_rate=1e30", "-P", "max_grad_norm=0", "-P", "max_rows=20"
    )
    assert result.returncode == 1
    run = workplace.only_run()
    assert run.info.status == "FAILED"
    assert "lower training.learning_rate" in run.data.tags[REASON]
    artifacts = {item.path for item in workplace.client().list_artifacts(run.info.run_id, "logs")}
    assert artifacts == {"logs/worker.log", "logs/traceback.txt"}
    assert not workplace.client().search_registered_models()


@pytest.mark.fault
@pytest.mark.process
def test_full_disk_fails_the_run_with_that_reason(tmp_path, empty_store):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        shutil.copy(empty_store, tmp_path / "mlflow.db")
        place = make_workplace(tmp_path, f"sqlite:///{tmp_path / 'mlflow.db'}")
        place.environment["MLFLOW_FINETUNE_HOME"] = str(disk)
        result = place.finetune_run(QUICKSTART, "-e", "lora", "-P", "num_train_epochs=1", "-P", "max_rows=20")
        assert result.returncode == 1
        run = place.ended_run(timeout_s=120)
        assert run.info.status == "FAILED"
        assert "disk full" in run.data.tags[REASON]
        stop_jobs(place)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_memory_errors_are_told_with_their_remedy():
    import torch

    assert "per_device_train_batch_size" in reason_of(
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
    )
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)  # a real refusal of the CPU allocator
    assert reason_of(caught.value).startswith("out of memory")


@pytest.mark.process
def test_report_of_a_finished_training_ends_with_its_result(workplace):
    result = workplace.mlflow_run(QUICKSTART, "-e", "lora", "-P", "max_steps=40", "-P", "max_rows=20")
    assert result.returncode == 0, result.stdout
    (job,) = (workplace.home / "jobs").iterdir()
    events = [json.loads(line) for line in (job / "report.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "result"
    assert events[-1]["model_uri"] == "models:/quickstart/1"
    for line in ("plan", "data", "train", "proof", "model"):
        assert f"  {line}" in result.stdout
