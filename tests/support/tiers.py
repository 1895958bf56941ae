"""The tiers of the tests: what a test uses decides when it runs.

``make test`` leaves out the tests that are marked here, except the whole path. A test without such a mark cannot start a
process, so a test that needs one cannot stay in the quick tier by mistake.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

STARTS_PROCESSES = ("process", "browser", "vllm", "gpu", "ray", "slurm", "whole_path")
PROCESS_FIXTURES = frozenset({"server", "service", "stand", "endpoint"})
BROWSER_FIXTURES = frozenset({"browser"})
SHORT_PROGRAMS = frozenset({"fc-list", "file", "git", "ldconfig", "nvidia-smi", "uname"})
"""What libraries call for a few milliseconds to learn about the machine."""


def mark_by_fixtures(items: Sequence[pytest.Item]) -> None:
    """Mark the tests whose fixtures start a process or a browser."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if fixtures & PROCESS_FIXTURES:
            item.add_marker("process")
        if fixtures & BROWSER_FIXTURES:
            item.add_marker("browser")


@contextmanager
def without_processes(item: pytest.Item) -> Iterator[None]:
    """Let a test that is not marked fail as soon as it, or one of its fixtures, starts a process."""
    if any(item.get_closest_marker(name) for name in STARTS_PROCESSES):
        yield
        return
    start = subprocess.Popen.__init__

    def refuse(self: subprocess.Popen[Any], args: Any, *rest: Any, **options: Any) -> None:
        program = args if isinstance(args, (str, bytes, os.PathLike)) else args[0]
        if os.path.basename(os.fsdecode(program)) not in SHORT_PROGRAMS:
            self._child_created = False  # type: ignore[attr-defined]  # __del__ reads it
            raise AssertionError(f"this test starts a process ({args!r}); fix: mark it with pytest.mark.process")
        start(self, args, *rest, **options)

    subprocess.Popen.__init__ = refuse  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        subprocess.Popen.__init__ = start  # type: ignore[method-assign]
