"""Predict the time of a run: the work of a traced step divided by the measured speed of this device.

Three figures of the device, taken in a third of a second whenever they are needed, so that other work on it counts:
matrix products at the model's hidden size, memory traffic, and the time that a small operation takes. A step's seconds are their sum on a CPU;
on a GPU small operations are queued beside the work, so the larger of both counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import torch

from mlflow_finetune_plugin.threads import ThreadChoice

_PROBE_S = 0.08
_ROUNDS = 8
_ROWS = 512
OPERATION_COST = 3.5
"""Small operations inside a model cost so many times a bare one: modules, autograd, PEFT. Measured (benchmarks/plan_accuracy.py)."""
FRESH_MEMORY = 2.5
"""On a CPU a step writes to memory that the kernel hands out and clears first. Measured (benchmarks/plan_accuracy.py)."""
EFFICIENCY = 0.9
"""Share of the probe's rates that training reaches. Measured on CPUs (benchmarks/plan_accuracy.py); not yet on a GPU."""


@dataclass(frozen=True)
class Rates:
    """``flops`` and ``bytes`` a second, ``operation_s`` seconds per small operation, and when that was measured (ISO)."""

    flops: float
    bytes: float
    operation_s: float
    device: str
    measured: str


def step_seconds(rates: Rates, *, flops: float, bytes_moved: float, operations: float) -> float:
    """Predicted seconds of work with these counts."""
    work = (flops / rates.flops + bytes_moved / rates.bytes) / EFFICIENCY
    calls = operations * rates.operation_s * OPERATION_COST
    return max(work, calls) if rates.device != "cpu" else work + calls


@contextmanager
def torch_threads(choice: ThreadChoice) -> Iterator[None]:
    """Compute with the chosen number of threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(choice.count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_rates(hidden_size: int, dtype: torch.dtype) -> Rates:
    """Rates of this device at this width and precision, measured now."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    a = torch.ones(_ROWS, hidden_size, dtype=dtype, device=device)
    b = torch.ones(hidden_size, hidden_size, dtype=dtype, device=device)
    out = torch.empty(_ROWS, hidden_size, dtype=dtype, device=device)
    block = torch.ones(2**24, dtype=torch.float32, device=device)  # beyond any cache
    result = torch.empty_like(block)
    small = torch.ones(8, device=device)
    with torch.inference_mode():
        product = _seconds(lambda: torch.mm(a, b, out=out), device, at_once=4)
        copy = _seconds(lambda: torch.add(block, 1.0, out=result), device, at_once=1)
        call = _seconds(lambda: small.add(1.0), device, at_once=64)
    return Rates(
        flops=2 * _ROWS * hidden_size * hidden_size / product,
        bytes=block.nbytes / copy / (FRESH_MEMORY if device.type == "cpu" else 1),
        operation_s=call,
        device=device.type,
        measured=datetime.now().isoformat(timespec="seconds"),
    )


def _seconds(act: Callable[[], object], device: torch.device, *, at_once: int) -> float:
    """The best of at least eight rounds: what disturbs a machine only makes it slower."""
    act()
    best, started, rounds = float("inf"), time.perf_counter(), 0
    while rounds < _ROUNDS or time.perf_counter() - started < _PROBE_S:
        since = time.perf_counter()
        for _ in range(at_once):
            act()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - since) / at_once)
        rounds += 1
    return best
