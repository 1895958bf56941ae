"""Rates of this very machine; seconds by hand."""

from dataclasses import replace
from datetime import datetime

import pytest
import torch

from mlflow_finetune_plugin.planning.throughput import (
    EFFICIENCY,
    OPERATION_COST,
    Rates,
    device_rates,
    step_seconds,
)

RATES = Rates(flops=100.0, bytes=10.0, operation_s=0.5, device="cpu", measured="2026-01-01T00:00:00")


def test_seconds_add_up_on_a_cpu_and_overlap_on_a_gpu():
    work, calls = (200 / 100 + 30 / 10) / EFFICIENCY, 4 * 0.5 * OPERATION_COST
    counts = {"flops": 200.0, "bytes_moved": 30.0, "operations": 4.0}
    assert step_seconds(RATES, **counts) == pytest.approx(work + calls)
    assert step_seconds(replace(RATES, device="cuda"), **counts) == pytest.approx(max(work, calls))


def test_rates_are_of_this_machine_and_now():
    started = datetime.now().replace(microsecond=0)
    rates = device_rates(64, torch.float32)
    assert rates.flops > 1e8
    assert rates.bytes > 1e7
    assert 1e-8 < rates.operation_s < 1e-2
    assert datetime.fromisoformat(rates.measured) >= started
