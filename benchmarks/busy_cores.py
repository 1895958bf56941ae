"""Does a training beside other work get its share of the cores, or wait for them at every matrix product?

    python benchmarks/busy_cores.py

Trains the quickstart on idle cores, then with one computing process per core beside it, with OMP_NUM_THREADS unset, and
prints the median tokens per second of both. A thread per core would wait for the busy cores at every product: 25 to 400
times as long. With two cores and two busy processes the fair share is half.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

QUICKSTART = Path(__file__).resolve().parent.parent / "recipes" / "quickstart"


def main() -> None:
    """Print the two speeds and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "MLFLOW_FINETUNE_HOME": f"{folder}/home",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        os.environ.pop("OMP_NUM_THREADS", None)
        idle = tokens_per_s("idle")
        with busy_cores():
            busy = tokens_per_s("busy")
    print(f"idle cores {idle:,.0f} tokens/s, busy cores {busy:,.0f} tokens/s: {idle / busy:.1f} times as long")


@contextmanager
def busy_cores() -> Iterator[None]:
    """One process for each core that computes without a pause."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def tokens_per_s(name: str) -> float:
    """Return the median speed of a short training, as the run recorded it."""
    import mlflow_finetune_plugin as ft
    from mlflow_finetune_plugin.store.clients import command_client

    result = ft.run(QUICKSTART, "lora", {"max_steps": 12, "logging_steps": 2, "max_rows": 4, "register": name})
    history = command_client().get_metric_history(result.run_id, "train/tokens_per_second")
    return median(metric.value for metric in history)


if __name__ == "__main__":
    main()
