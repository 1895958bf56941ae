"""What every adaptation learns, forgets, stores and costs on one task, with ``auto`` for all that has it.

    python benchmarks/adaptation_quality.py [ADAPTATION...] [--recipe quickstart] [--seed 0]

Each adaptation runs a recipe through the pipeline, in a process of its own: same base, rows, epochs and held-out rows. The table has the
answers' exact match with the interval of its gain over the base, forgetting on general text, the size of the adapter's file, and seconds and peak memory of the training.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from adaptation_rates import RECIPES, run

_MARK = "MEASURED"
_MEGABYTE = 1e6


def measure(recipe: str, adaptation: str, seed: int) -> None:
    """Train, and print the metrics and the size of the adapter's file as JSON."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        metrics = run(Path(folder), {"adaptation": adaptation, "seed": str(seed)}, recipe=recipe)
        size = max(path.stat().st_size for path in Path(folder).rglob("adapter_model.safetensors"))
    print(_MARK + json.dumps(metrics | {"bytes": size}))


def measured(recipe: str, adaptation: str, seed: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", adaptation, "--recipe", recipe, "--seed", str(seed)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RuntimeError(f"{adaptation}: {process.stderr[-2000:]}")
    line = next(line for line in process.stdout.splitlines() if line.startswith(_MARK))
    return dict(json.loads(line.removeprefix(_MARK)))


def main() -> None:
    from mlflow_finetune_plugin.methods import method_names

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adaptations", nargs="*", metavar="ADAPTATION")
    parser.add_argument("--recipe", choices=sorted(path.name for path in RECIPES.iterdir()), default="quickstart")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_OFFLINE": "1"}
    if arguments.measure:
        measure(arguments.recipe, arguments.measure, arguments.seed)
        return
    print(f"recipe {arguments.recipe}, seed {arguments.seed}\n")
    print(
        "| adaptation | learning rate | exact match | gain (95 % CI) | forgetting, nats per token | "
        "file, MB | train s | peak MiB |"
    )
    print("|---" * 8 + "|", flush=True)
    for name in arguments.adaptations or method_names("adaptation"):
        m = measured(arguments.recipe, name, arguments.seed)
        low, high = m["eval/gain_low/exact_match"], m["eval/gain_high/exact_match"]
        print(
            f"| {name} | {m['learning_rate']:g} | {m['eval/adapter/exact_match']:.3f} | "
            f"{m['eval/gain/exact_match']:+.3f} ({low:+.3f}..{high:+.3f}) | {m['forgetting/nats_per_token']:+.3f} | "
            f"{m['bytes'] / _MEGABYTE:.2f} | {m['train/seconds']:.0f} | "
            f"{m['train/peak_memory_mib']:,.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
