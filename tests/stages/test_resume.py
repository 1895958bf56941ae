"""A run whose worker is killed again and again ends as one that was left alone: same adapter, same curve, one MLflow run."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from conftest import Workplace, wait_for, write_rows
from killed_runs import adapter_digests, arguments, history, kill_after
from mlflow.entities import Metric

from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.jobs.folder import JobFolder
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.jobs.run_record import RunRecord
from mlflow_finetune_plugin.stages.resume import record_drift
from mlflow_finetune_plugin.store.names import ATTEMPT_OWNER_PARAM, ATTEMPT_TAG, HEARTBEAT_TAG, HOST_TAG
from mlflow_finetune_plugin.submission.attempts import Owner, claim, next_attempt


@pytest.fixture
def trainee(workplace: Workplace) -> Workplace:
    (workplace.path / "project").mkdir()
    rows = [{"prompt": f"a word about number {i}" + " please" * (i % 7), "completion": f"it is {i}"} for i in range(40)]
    write_rows(workplace.path / "train.jsonl", rows[:32])
    write_rows(workplace.path / "test.jsonl", rows[32:])
    return workplace


def newest_job(place: Workplace) -> Path:
    return max((place.home / "jobs").iterdir(), key=lambda path: path.stat().st_ctime)


def failed_run(place: Workplace, other: str) -> str:
    """The id of the only run besides ``other``, once it says FAILED."""
    client = place.client()
    (run,) = [run for run in place.runs() if run.info.run_id != other]
    wait_for(lambda: client.get_run(run.info.run_id).info.status == "FAILED", 60, "the attempt's last word")
    return str(run.info.run_id)


@pytest.mark.fault
@pytest.mark.process
@pytest.mark.timeout(1500)
def test_kills_change_nothing(trainee):
    whole = trainee.finetune_run(*arguments())
    assert whole.returncode == 0, whole.stdout
    expected = trainee.only_run().info.run_id
    jobs = set((trainee.home / "jobs").iterdir())
    run_id = None
    for step in (4, 14):
        more = {"resume": run_id} if run_id else {}
        before = set((trainee.home / "jobs").iterdir())
        kill_after(trainee, step, before, trainee.start_finetune_run(*arguments(**more)))
        run_id = failed_run(trainee, expected)
    torn = max((path for path in (trainee.home / "jobs").glob("*/work/checkpoints/*")), key=lambda p: int(p.name[11:]))
    (torn / "optimizer.pt").write_bytes(b"torn")
    last = trainee.finetune_run(*arguments(resume=run_id, max_new_tokens=3))
    assert last.returncode == 0, last.stdout
    assert f"incomplete checkpoint is passed over: {torn}: optimizer.pt" in last.stdout
    assert "changed since the run began: eval.max_new_tokens 2 -> 3" in last.stdout
    run = trainee.client().get_run(run_id)
    assert (run.info.status, run.data.tags[ATTEMPT_TAG]) == ("FINISHED", "3")
    assert run.data.params["eval.max_new_tokens"] == "2"
    assert json.loads(run.data.tags["finetune.param_drift"]) == {"eval.max_new_tokens": ["2", "3"]}
    for key in ("train/loss", "train/grad_norm", "train/learning_rate", "train/tokens", "eval_loss"):
        assert history(trainee, run_id, key) == history(trainee, expected, key), key
    assert [step for step, _ in history(trainee, run_id, "train/loss")] == [1, *range(3, 25, 3)]
    assert adapter_digests(trainee, run_id) == adapter_digests(trainee, expected)
    assert {name: len(found) for name, found in adapter_digests(trainee, expected).items()} == {
        "adapter": 1,
        "checkpoint": 1,
    }
    assert len(set((trainee.home / "jobs").iterdir()) - jobs) == 3
    again = trainee.finetune_run(*arguments(resume=run_id))
    assert again.returncode == 2
    assert "has finished, nothing is left to do" in again.stdout


@pytest.mark.process
def test_cancelled_run_goes_on_elsewhere_from_its_artifacts(trainee):
    process = trainee.start_finetune_run(*arguments(save_steps=1000, max_steps=400))
    job = trainee.job()
    report = job / "report.jsonl"
    wait_for(lambda: report.exists() and "train/loss" in report.read_text(), 240, "steps")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=90)
    run = trainee.ended_run()
    assert run.info.status == "KILLED", output
    saved = [
        event
        for event in map(json.loads, (job / "report.jsonl").read_text().splitlines())
        if event["event"] == "checkpoint"
    ]
    assert len(saved) == 1  # what was asked to stop saved itself
    step = saved[0]["step"]
    elsewhere = {"MLFLOW_FINETUNE_HOME": str(trainee.path / "another-host")}
    refused = trainee.finetune_run(*arguments(resume=run.info.run_id, max_steps=step + 2, rank=8), **elsewhere)
    assert refused.returncode == 1
    assert "-P resume: options.rank was 4 and is 8; fix: the same as before" in refused.stdout
    past = trainee.finetune_run(*arguments(resume=run.info.run_id, max_steps=step - 1), **elsewhere)
    assert past.returncode == 1
    assert f"is after step {step}, and this asks for {step - 1} steps in all" in past.stdout
    result = trainee.finetune_run(*arguments(resume=run.info.run_id, max_steps=step + 2), **elsewhere)
    assert result.returncode == 0, result.stdout
    assert f"resumed after step {step}, from the artifacts of the run" in result.stdout
    assert history(trainee, run.info.run_id, "train/tokens")[-1][0] == step + 2


@pytest.fixture
def client(desk: Workplace):  # type: ignore[no-untyped-def]
    return desk.client()


def run_of(client, status: str = "FAILED", **tags: str) -> str:  # type: ignore[no-untyped-def]
    run = client.create_run("0", tags={ATTEMPT_TAG: "2", HOST_TAG: "another-host", **tags})
    client.update_run(run.info.run_id, status=status)
    return run.info.run_id


def attempt(client, run_id: str):  # type: ignore[no-untyped-def]
    return next_attempt(client, run_id, adaptation="lora", objective="sft")


def test_next_attempt_has_the_next_number(client):
    run_id = run_of(client, **{"finetune.adaptation": "lora"})
    assert (attempt(client, run_id).run_id, attempt(client, run_id).number) == (run_id, 3)


def test_silent_run_of_another_host_can_be_taken_over(client):
    run_id = run_of(client, "RUNNING", **{HEARTBEAT_TAG: str(int(time.time()) - 400)})
    assert attempt(client, run_id).number == 3


def test_runs_that_must_not_be_resumed_are_refused(client):
    deleted = run_of(client)
    client.delete_run(deleted)
    foreign = client.create_run("0").info.run_id
    for run_id, why in {
        "0" * 32: "no such run",
        deleted: "the run was deleted; fix: mlflow runs restore",
        foreign: "no run of this backend",
        run_of(client, "FINISHED"): "the run has finished",
        run_of(client, **{"finetune.adaptation": "ia3"}): "its adaptation is ia3, not lora; fix",
        run_of(client, "RUNNING", **{HEARTBEAT_TAG: str(int(time.time()) - 10)}): "sign of life from another-host",
    }.items():
        with pytest.raises(ConfigError, match=why):
            attempt(client, run_id)


def test_later_attempt_adds_what_is_missing_and_doubles_nothing(client):
    run_id = run_of(client)
    client.log_batch(run_id, metrics=[Metric("train/loss", 3.0, 10, 1), Metric("train/loss", 1.0, 30, 3)])
    client.log_param(run_id, "rank", "4")
    record = RunRecord(client, run_id, attempt=2)
    for step, value in ((1, 3.0), (2, 2.0), (3, 1.0), (4, 0.5)):
        record.apply({"event": "metrics", "values": {"train/loss": value}, "step": step, "time_ms": 40 + step})
    record.apply({"event": "params", "values": {"rank": "8", "alpha": "16"}})
    points = sorted((m.step, m.value) for m in client.get_metric_history(run_id, "train/loss"))
    assert points == [(1, 3.0), (2, 2.0), (3, 1.0), (4, 0.5)]
    assert client.get_run(run_id).data.params == {"rank": "4", "alpha": "16"}


def test_only_params_that_changed_since_the_run_began_are_noted(client, desk, tmp_path):
    run_id = run_of(client)
    begun = {"rank": 4, "columns": "x" * 7000}
    RunRecord(client, run_id, attempt=1).apply({"event": "params", "values": {k: str(v) for k, v in begun.items()}})

    def notes(now: dict[str, object]) -> list[str]:
        path = tmp_path / "report.jsonl"
        path.unlink(missing_ok=True)
        record_drift(now, desk.tracking_uri, run_id, tmp_path, Report(path))
        events = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
        return [event["text"] for event in events if event["event"] == "note"]

    assert notes(begun) == []  # MLflow cut the long value, and it is the same
    assert notes({**begun, "seed": 7}) == []
    assert notes({**begun, "rank": 8}) == ["changed since the run began: rank 4 -> 8"]


def test_checkpoints_take_turns_in_the_artifacts_and_one_that_is_gone_is_passed_by(client, tmp_path):
    run_id = run_of(client)
    record = RunRecord(client, run_id, attempt=1)
    for step in (1, 2, 3, 4):
        folder = tmp_path / f"checkpoint-{step}"
        if step != 4:
            folder.mkdir()
            (folder / "manifest.json").write_text(str(step))
        slot = f"checkpoints/slot-{(step - 1) % 2}"
        record.apply({"event": "checkpoint", "step": step, "path": str(folder), "folder": slot})
    kept = [Path(client.download_artifacts(run_id, f"checkpoints/slot-{i}/manifest.json")).read_text() for i in (0, 1)]
    assert kept == ["3", "2"]


def race_for(runs: list[str], tracking_uri: str, number: int, start: float) -> list[bool]:
    """Which of the runs this process got."""
    from mlflow import MlflowClient

    own = MlflowClient(tracking_uri)
    won = []
    for place, run_id in enumerate(runs):
        time.sleep(max(0.0, start + 0.3 * place - time.time()))
        try:
            claim(own, run_id, 3, f"job-{number}")
            won.append(True)
        except ConfigError:
            won.append(False)
    return won


@pytest.mark.fault
def test_of_racing_commands_exactly_one_gets_the_attempt(desk, client):
    runs = [run_of(client) for _ in range(10)]
    start = time.time() + 2
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        outcomes = [pool.submit(race_for, runs, desk.tracking_uri, number, start) for number in range(4)]
        won = [outcome.result(60) for outcome in outcomes]
    for place, run_id in enumerate(runs):
        (winner,) = [number for number in range(4) if won[number][place]]
        assert Owner.from_text(client.get_run(run_id).data.params[f"{ATTEMPT_OWNER_PARAM}3"]).job == f"job-{winner}"


def test_attempt_that_somebody_has_begun_is_refused_until_that_one_is_dead(desk, client):
    run_id = run_of(client)
    folder = JobFolder.create()
    folder.answer_for(os.getpid())
    claim(client, run_id, 3, folder.id)
    with pytest.raises(ConfigError, match=f"{socket.gethostname()} \\(job {folder.id}\\) has begun to resume it"):
        attempt(client, run_id)
    (folder.path / "starting.json").unlink()
    assert attempt(client, run_id).number == 4
    client.log_param(run_id, f"{ATTEMPT_OWNER_PARAM}4", str(Owner("another-host", "job", int(time.time()) - 10)))
    with pytest.raises(ConfigError, match=r"another-host .* 1\d s ago; fix: wait"):
        attempt(client, run_id)
    other = run_of(client)
    client.log_param(other, f"{ATTEMPT_OWNER_PARAM}3", str(Owner("another-host", "job", int(time.time()) - 400)))
    assert attempt(client, other).number == 4
