"""A peak that is over when it is asked for is still seen."""

import os
import sys
import time

import psutil
import pytest
import torch

from mlflow_finetune_plugin.startup import ask_for_huge_pages
from mlflow_finetune_plugin.training import memory as peak_memory
from mlflow_finetune_plugin.training.memory import PeakMemory

MIB = 2**20
SIZE = 200 * MIB
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="measures the process, not the GPU")


def grown() -> float:
    before = psutil.Process().memory_info().rss
    with PeakMemory() as peak:
        block = torch.ones(SIZE, dtype=torch.uint8)
        time.sleep(0.1)
        del block
    return (peak.bytes - before) / MIB


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
def test_freed_memory_counts_and_an_earlier_peak_does_not():
    assert 190 < grown() < 230
    with PeakMemory() as peak:
        pass
    assert not peak.is_sampled
    assert peak.bytes < psutil.Process().memory_info().rss + 20 * MIB


def test_where_the_kernel_keeps_no_peak_a_thread_looks(monkeypatch):
    monkeypatch.setattr(peak_memory, "_restart_high_water_mark", lambda: False)
    assert 190 < grown() < 230


def test_huge_pages_are_asked_for_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    ask_for_huge_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    ask_for_huge_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
