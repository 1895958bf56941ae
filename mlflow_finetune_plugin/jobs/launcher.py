"""Start a run's processes on this machine: one, or one for each GPU that shares the training.

A launcher is a module with ``environments(...)``, the additional environment of each process of a run, and
``start(command, ...) -> subprocess.Popen``. The supervisor uses nothing else of it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.jobs.gpus import VISIBLE, visible_gpus
from mlflow_finetune_plugin.threads import allowed_cores


def environments(*, gpus_per_node: int | None = None, processes_per_node: int | None = None) -> list[dict[str, str]]:
    """Return one environment per process. Without a limit: one process for each visible GPU, or one without GPUs.

    Raises:
        ConfigError: More GPUs are requested than are visible, more processes than cores, or processes that would share
            a GPU.
    """
    gpus = visible_gpus()
    if gpus_per_node is not None and gpus_per_node > len(gpus):
        hint = "" if gpus else ', or {"processes_per_node": N} to train on the CPU'
        raise ConfigError(
            [f"-c gpus_per_node = {gpus_per_node}: {_count(len(gpus))} visible here; fix: at most that many{hint}"]
        )
    if processes_per_node is None:
        chosen = gpus[:gpus_per_node]
        places = [{VISIBLE: gpu} for gpu in chosen] if len(gpus) > 1 else [{}]
    elif gpus:
        raise ConfigError(
            [
                f"-c processes_per_node = {processes_per_node}: {_count(len(gpus))} visible here, and each has one process; "
                "fix: gpus_per_node"
            ]
        )
    else:
        places = [{} for _ in range(processes_per_node)]
        if processes_per_node > allowed_cores():
            raise ConfigError(
                [
                    f"-c processes_per_node = {processes_per_node}: this machine grants {allowed_cores()} cores; fix: at most that many"
                ]
            )
    return places


def start(command: Sequence[str], *, cwd: Path, environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process that is detached from every terminal, with its output in ``log``."""
    with log.open("ab") as output:
        return subprocess.Popen(
            list(command),
            cwd=cwd,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _count(gpus: int) -> str:
    return "1 GPU is" if gpus == 1 else f"{gpus or 'no'} GPUs are"
