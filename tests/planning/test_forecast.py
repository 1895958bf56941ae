"""A plan and its forecast under rooms of every size: what is chosen, what is refused, what would fit instead."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pipeline_runs import config_for, run_pipeline
from tiny_bases import tiny_base

from mlflow_finetune_plugin.base_models import loading
from mlflow_finetune_plugin.config.sections import TrainingSettings
from mlflow_finetune_plugin.data.preparation import PreparedData, prepare
from mlflow_finetune_plugin.errors import PlanError
from mlflow_finetune_plugin.planning import fitting, forecast
from mlflow_finetune_plugin.planning.forecast import Forecast, check_fits, duration, forecast_run
from mlflow_finetune_plugin.planning.memory import MIB, MemoryRoom
from mlflow_finetune_plugin.planning.micro_batch_shapes import RowLengths, shapes_of
from mlflow_finetune_plugin.planning.plan import Plan, data_request, make_plan, settle_on


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"), hidden_size=128, intermediate_size=512, num_hidden_layers=8)


def planned(folder: Path, base: Path, **training: object) -> tuple[Plan, PreparedData]:
    values = {"max_steps": 4, "learning_rate": 1e-3, **training}
    config = config_for(folder, base).model_copy(update={"training": TrainingSettings(**values)})
    plan = make_plan(config)
    data = prepare(data_request(plan), plan.renderer, folder / "prepared")
    return settle_on(plan, data), data


def foreseen(plan: Plan, data: PreparedData) -> tuple[Plan, Forecast]:
    plan, found, why_not = forecast_run(plan, data)
    assert found is not None, why_not
    return plan, found


def room(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    monkeypatch.setattr(forecast, "memory_room", lambda *_: MemoryRoom(int(size), "a test's limit"))


def test_where_there_is_room_nothing_is_changed(tmp_path, base):
    plan, data = planned(tmp_path, base)
    after, found = foreseen(plan, data)
    assert (after.config, after.reasons) == (plan.config, plan.reasons)
    assert found.verdict == "fits"
    assert found.shapes.steps == 4
    check_fits(found)
    assert f"fits: needs {found.memory.total / MIB:,.0f} MiB" in found.line()


@pytest.mark.train
def test_an_auto_micro_batch_gets_smaller_and_the_step_stays(tmp_path, base, monkeypatch):
    plan, data = planned(tmp_path, base)
    _, found = foreseen(plan, data)
    saved = found.memory.micro_batch
    room(monkeypatch, (found.memory.total - saved * 0.6) / 0.85)
    after, smaller = foreseen(plan, data)
    before, chosen = plan.config.training, after.config.training
    assert chosen.max_batch_tokens < before.max_batch_tokens
    assert chosen.per_device_train_batch_size == before.per_device_train_batch_size
    assert chosen.gradient_accumulation_steps == before.gradient_accumulation_steps
    assert smaller.verdict == "fits"
    assert smaller.shapes.per_step > 1
    assert after.reasons["training.max_batch_tokens"].startswith(
        f"{chosen.max_batch_tokens}: fits this machine's memory"
    )


@pytest.mark.train
def test_padded_rows_keep_the_effective_batch(tmp_path, base, monkeypatch):
    plan, data = planned(tmp_path, base, batching="padded")
    _, found = foreseen(plan, data)
    room(monkeypatch, (found.memory.total - found.memory.micro_batch * 0.3) / 0.85)
    chosen = foreseen(plan, data)[0].config.training
    before = plan.config.training
    assert chosen.per_device_train_batch_size < before.per_device_train_batch_size
    assert (
        chosen.per_device_train_batch_size * chosen.gradient_accumulation_steps
        == before.per_device_train_batch_size * before.gradient_accumulation_steps
    )


@pytest.mark.train
def test_what_was_given_is_not_changed_but_refused_with_what_would_fit(tmp_path, base, monkeypatch):
    plan, data = planned(tmp_path, base, max_batch_tokens=640, per_device_train_batch_size=16)
    _, found = foreseen(plan, data)
    checkpointed = found.memory.total - found.memory.micro_batch // 2
    monkeypatch.setattr(forecast, "REFUSED", 1.001)
    monkeypatch.setattr(forecast, "TIGHT", 1.0)
    monkeypatch.setattr(fitting, "TIGHT", 1.0)
    room(monkeypatch, checkpointed)
    after, refused = foreseen(plan, data)
    assert after.config.training.max_batch_tokens == 640
    assert refused.verdict == "does not fit"
    with pytest.raises(PlanError, match=r"the run does not fit: it needs .* fix: ") as told:
        check_fits(refused)
    text = str(told.value)
    assert "training.max_batch_tokens: " in text
    assert "training.gradient_checkpointing: true (" in text
    assert "a test's limit" in text


@pytest.mark.train
def test_when_nothing_helps_that_is_said(tmp_path, base, monkeypatch):
    plan, data = planned(tmp_path, base)
    room(monkeypatch, 50 * MIB)
    _, refused = foreseen(plan, data)
    assert refused.verdict == "does not fit"
    assert "no setting makes it fit" in refused.refusal()


@pytest.mark.train
def test_a_run_that_cannot_fit_ends_before_any_weight_is_read(tmp_path, base, empty_store, monkeypatch):
    room(monkeypatch, 50 * MIB)
    monkeypatch.setattr(loading, "load_base_model", lambda base: pytest.fail("weights were read"))
    with pytest.raises(PlanError, match="no setting makes it fit"):
        run_pipeline(tmp_path / "run", empty_store, config_for(tmp_path, base))
    assert (tmp_path / "run" / "work" / "plan.json").exists()


@pytest.mark.train
def test_a_run_logs_what_was_predicted_and_what_it_took(tmp_path, base, empty_store):
    ran = run_pipeline(tmp_path / "run", empty_store, config_for(tmp_path, base))
    metrics = ran.run.data.metrics
    assert {"plan/memory_mib", "plan/train_seconds", "train/peak_memory_mib", "train/seconds"} <= set(metrics)
    assert metrics["train/peak_memory_mib"] > 100
    assert '"peak_phase"' in ran.artifact("finetune/plan.json").read_text()


def test_shapes_are_those_that_training_will_draw():
    lengths = RowLengths(np.array([[10], [20], [30], [40]]), np.array([[1], [2], [3], [4]]))
    training = TrainingSettings(
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        batching="packed",
        max_batch_tokens=60,
        num_train_epochs=2.0,
        gradient_checkpointing=False,
        max_length=64,
    )
    shapes = shapes_of(lengths, training, on_gpu=False)
    # one step an epoch holds all four rows: 40 + 20, 30 + 10
    assert (shapes.steps, shapes.tokens, shapes.per_step) == (2, 200, 2.0)
    assert [(batch.rows, batch.tokens, batch.scored, batch.loss) for batch in shapes.largest] == [(2, 60, 6, "logits")]
    assert shapes_of(lengths, training, on_gpu=True).largest[0].loss == "fused"


@pytest.mark.parametrize(("seconds", "text"), [(25.4, "25 s"), (720, "12 min"), (12_240, "3.4 h")])
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.train
def test_an_engine_that_samples_holds_a_second_copy_of_the_base(tmp_path, base):
    reward = {"grader": {"type": "string_check", "name": "a", "operation": "eq", "input": "a", "reference": "a"}}
    memory = {}
    for sampler in ("trainer", "engine"):
        options = {"rewards": [reward], "sampler": sampler, "max_completion_length": 8, "num_generations": 2}
        config = config_for(tmp_path, base, objective="grpo", options=options, training={"max_steps": 1})
        plan = make_plan(config)
        data = prepare(data_request(plan), plan.renderer, tmp_path / f"prepared_{sampler}")
        _, foreseen_run = foreseen(settle_on(plan, data), data)
        memory[sampler] = foreseen_run.memory
    assert memory["trainer"].sampling_engine == 0
    engine = memory["engine"]
    assert engine.sampling_engine > engine.process + engine.base_weights
    assert engine.total == engine.worker + engine.sampling_engine
    assert engine.training_and_loading <= memory["trainer"].training_and_loading, "what the worker itself holds"
    assert f"of which {engine.sampling_engine / MIB:,.0f} MiB for the engine that samples" in foreseen_run.line()
