"""Starts a worker as a process group of its own on this machine.

A launcher is a module with ``Options`` (from the backend config) and ``start(command, ...) -> subprocess.Popen``; the
supervisor knows nothing else of it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow_finetune_plugin.settings import Section


class Options(Section):
    """Nothing to choose yet: one process on this machine."""


def start(command: Sequence[str], *, cwd: Path, environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """The worker, detached from every terminal; its output goes to ``log``."""
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
