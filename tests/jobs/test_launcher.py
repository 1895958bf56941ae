"""How many processes share a training, and what each gets."""

from __future__ import annotations

import pytest

from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.jobs import launcher
from mlflow_finetune_plugin.jobs.launcher import environments


@pytest.fixture
def machine(monkeypatch):
    def has(*gpus: str, cores: int = 8) -> None:
        monkeypatch.setattr(launcher, "visible_gpus", lambda: list(gpus))
        monkeypatch.setattr(launcher, "allowed_cores", lambda: cores)

    return has


def test_one_gpu_or_none_is_one_process_as_it_is(machine):
    for gpus in ([], ["0"]):
        machine(*gpus)
        assert environments() == [{}]
    assert environments(gpus_per_node=1) == [{}]


def test_every_visible_gpu_has_a_process(machine):
    machine("0", "3", "GPU-7f")
    assert environments() == [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in ("0", "3", "GPU-7f")]
    assert environments(gpus_per_node=1) == [{"CUDA_VISIBLE_DEVICES": "0"}]


def test_several_processes_train_without_gpu_when_the_cores_allow_it(machine):
    machine(cores=5)
    assert environments(processes_per_node=2) == [{}] * 2


@pytest.mark.parametrize(
    ("gpus", "processes", "why"),
    [
        (["0"], {"gpus_per_node": 2}, "gpus_per_node = 2: 1 GPU is visible here; fix: at most that many"),
        ([], {"gpus_per_node": 1}, 'no GPUs are visible here; fix: .* or {"processes_per_node": N}'),
        (["0", "1"], {"processes_per_node": 2}, "2 GPUs are visible here, .*; fix: gpus_per_node"),
        ([], {"processes_per_node": 9}, "this machine grants 8 cores; fix: at most that many"),
    ],
)
def test_what_this_machine_cannot_do_is_refused(machine, gpus, processes, why):
    machine(*gpus)
    with pytest.raises(ConfigError, match=why):
        environments(**processes)
