"""Run a module of this package in a process with limits of time and memory, and without credentials."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

_VARIABLES = ("PATH", "PYTHONPATH", "LANG", "LC_ALL")


def run_limited(module: str, text: str, limit_s: float) -> tuple[str, str | None]:
    """Run ``python -m module``. It blocks.

    Args:
        module: Calls ``set_limits`` before it does anything else.
        text: What it reads from stdin.
        limit_s: Seconds until it is killed.

    Returns:
        What it wrote to stdout, and why it failed; None if it did not.
    """
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-m", module],
            env={name: os.environ[name] for name in _VARIABLES if name in os.environ},  # no credentials
            input=text,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "", f"it took more than {limit_s:.0f} s"
    if child.returncode == 0:
        return child.stdout, None
    return "", (child.stderr.strip().splitlines() or [f"the process ended with {child.returncode}"])[-1][:300]


def set_limits(cpu_s: int, memory_bytes: int) -> None:
    """Limit this process."""
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
