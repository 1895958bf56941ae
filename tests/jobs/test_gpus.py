"""Which GPUs a process would see, by what nvidia-smi and CUDA_VISIBLE_DEVICES say."""

from __future__ import annotations

import pytest

from mlflow_finetune_plugin.errors import FinetuneError
from mlflow_finetune_plugin.jobs.gpus import chosen_gpus, visible_gpus

TWO = "GPU 0: NVIDIA H200 (UUID: GPU-0a1b-22)\nGPU 1: NVIDIA H200 (UUID: GPU-7f3c-91)\n"
SLICED = TWO + "  MIG 3g.71gb     Device  0: (UUID: MIG-55aa-03)\n"
UUIDS = ["GPU-0a1b-22", "GPU-7f3c-91", "MIG-55aa-03"]


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A machine whose nvidia-smi says this; no GPU is here to say it."""

    def says(text: str, code: int = 0) -> None:
        (tmp_path / "said").write_text(text)
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f'#!/bin/sh\ntest "$1" = -L || exit 9\ncat {tmp_path}/said\nexit {code}\n')
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return says


@pytest.mark.parametrize(
    ("visible", "chosen"),
    [
        (None, ["0", "1"]),
        ("1", ["1"]),
        ("1,0", ["1", "0"]),
        ("", []),
        ("-1", []),
        ("0,-1,1", ["0"]),  # CUDA stops at the first that it does not know
        ("0,2", ["0"]),
        ("0,0", ["0"]),
        ("GPU-7f", ["GPU-7f"]),
        ("MIG-55aa-03", ["MIG-55aa-03"]),
        ("GPU-none", []),
    ],
)
def test_gpus_are_those_that_cuda_would_show(visible, chosen):
    assert chosen_gpus(visible, UUIDS) == chosen


def test_every_gpu_counts_once_and_its_slices_only_by_name(driver, monkeypatch):
    driver(SLICED)
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-55aa-03")
    assert visible_gpus() == ["MIG-55aa-03"]


def test_driver_without_devices_is_a_machine_without_gpu(driver):
    driver("No devices were found\n", 6)
    assert visible_gpus() == []


def test_broken_driver_is_told(driver):
    driver("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver\n", 9)
    with pytest.raises(FinetuneError, match="couldn't communicate with the NVIDIA driver; fix:"):
        visible_gpus()


def test_machine_without_driver_has_none(driver, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == []
