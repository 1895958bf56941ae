"""Run the sides of a comparison with TRL in turn, each repeat in a process of its own, so that its peak memory is its own."""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

Figures = dict[str, float]


def compare(
    arguments: argparse.Namespace, objectives: Sequence[str], sides: Sequence[str], options: Sequence[str]
) -> dict[str, dict[str, Figures]]:
    """Return the median figures of each side, by objective. The sides take turns.

    Args:
        arguments: Those of the script, with ``conversations`` and ``repeats``.
        objectives: The objectives.
        sides: The sides, for the script's ``--side``.
        options: The further options that the script passes on.
    """
    medians = {}
    for objective in objectives:
        results: dict[str, list[Figures]] = {side: [] for side in sides}
        for _ in range(arguments.repeats):
            for side in sides:
                command = [sys.executable, sys.argv[0], str(arguments.conversations), "--objective", objective]
                command += ["--side", side, *(f"--{name}={getattr(arguments, name)}" for name in options)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                results[side].append(json.loads(done.stdout.splitlines()[-1]))
        medians[objective] = {
            side: {name: statistics.median(each[name] for each in repeats) for name in repeats[0]}
            for side, repeats in results.items()
        }
    return medians


def measured(work: Callable[[], Figures]) -> Figures:
    """Return the figures of ``work`` with its seconds, processor seconds and the memory that it added to the peak, in MiB."""
    before = _peak_mib()
    started = time.monotonic(), time.process_time()
    figures = work()
    return {
        "seconds": time.monotonic() - started[0],
        "processor_seconds": time.process_time() - started[1],
        "peak_mib": _peak_mib() - before,
        **figures,
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table_row(side: str, figures: Figures, trl: Figures, *more: str) -> str:
    """Return a row of a Markdown table: seconds, processor seconds, how much faster than TRL's defaults, memory, and ``more``."""
    cells = [
        f"{figures['seconds']:.1f}",
        f"{figures['processor_seconds']:.1f}",
        f"{trl['processor_seconds'] / figures['processor_seconds']:.2f}",
        f"{figures['peak_mib']:,.0f}",
        *more,
    ]
    return f"| {side} | {' | '.join(cells)} |"
