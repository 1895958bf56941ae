"""What the plan stage notes of the forecast, and when it is silent."""

from dataclasses import replace

import pytest

from mlflow_finetune_plugin.jobs.report import Report, ReportReader
from mlflow_finetune_plugin.planning.forecast import Forecast
from mlflow_finetune_plugin.planning.memory import MemoryParts, MemoryRoom
from mlflow_finetune_plugin.planning.micro_batch_shapes import Shapes
from mlflow_finetune_plugin.planning.step_trace import MicroBatch
from mlflow_finetune_plugin.planning.throughput import Rates
from mlflow_finetune_plugin.stages.plan import record_forecast

MICRO_BATCH = MicroBatch(rows=1, row_tokens=10, scored=4, packs=False, loss="logits")
FORECAST = Forecast(
    memory=MemoryParts(100, 100, 0, 0, 0, 100, 200, 200),
    room=MemoryRoom(1000, "a limit"),
    shapes=Shapes((MICRO_BATCH,), MICRO_BATCH, per_step=1.0, steps=3, tokens=30),
    seconds=5.0,
    flops=1e9,
    rates=Rates(1e9, 1e9, 1e-6, "cpu", "2026-11-25"),
    trainable=10,
)


def notes(folder, forecast, why_not=""):
    report = Report(folder / "report.jsonl")
    record_forecast(forecast, why_not, folder, report)
    return [event["text"] for event in ReportReader(folder / "report.jsonl").new_events() if event["event"] == "note"]


@pytest.mark.parametrize(("room", "is_noted"), [(1000, False), (320, True)])
def test_tight_memory_is_noted_and_enough_is_not(tmp_path, room, is_noted):
    forecast = replace(FORECAST, room=MemoryRoom(room, "a limit"))
    assert forecast.verdict == ("tight" if is_noted else "fits")
    expected = ["memory is tight by the prediction: steps are made in smaller parts if it runs out"]
    assert notes(tmp_path, forecast) == (expected if is_noted else [])


def test_a_missing_forecast_is_noted_with_its_reason(tmp_path):
    assert notes(tmp_path, None, "memory and time cannot be predicted: x") == ["memory and time cannot be predicted: x"]
