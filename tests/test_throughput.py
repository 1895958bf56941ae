"""Rates of this very machine, kept for a while; seconds by hand."""

import json
from dataclasses import replace

import pytest
import torch

from mlflow_finetune_plugin.throughput import EFFICIENCY, OPERATION_COST, Rates, device_rates, step_seconds

RATES = Rates(flops=100.0, bytes=10.0, operation_s=0.5, device="cpu", measured="2026-01-01T00:00:00")


def test_seconds_add_up_on_a_cpu_and_overlap_on_a_gpu():
    work, calls = (200 / 100 + 30 / 10) / EFFICIENCY, 4 * 0.5 * OPERATION_COST
    counts = {"flops": 200.0, "bytes_moved": 30.0, "operations": 4.0}
    assert step_seconds(RATES, **counts) == pytest.approx(work + calls)
    assert step_seconds(replace(RATES, device="cuda"), **counts) == pytest.approx(max(work, calls))


def test_rates_are_measured_once_and_kept_with_their_date(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_FINETUNE_HOME", str(tmp_path))
    first = device_rates(64, torch.float32)
    assert first.flops > 1e8
    assert first.bytes > 1e7
    assert 1e-8 < first.operation_s < 1e-2
    assert device_rates(64, torch.float32) == first
    (path,) = (tmp_path / "rates").iterdir()
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({**kept, "flops": 1.0, "measured": "2020-01-01T00:00:00"}))
    assert device_rates(64, torch.float32).flops > 1e8  # a week has passed
    path.write_text("{")
    assert device_rates(64, torch.float32).flops > 1e8
