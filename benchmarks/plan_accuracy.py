"""Predicted against measured: memory and time of training, a dozen shapes, each in a process of its own, on the CPU.

    python benchmarks/plan_accuracy.py [--only NAME ...] [--threads 2]

Bases are random Llamas, rows are random digits. A shape is planned as a run plans it (forecast.py), then trained as a run trains
it (stages.train.train_adapter), with the huge pages that a worker asks for. Memory is the process's peak resident size from the first weight read
to the last step. Time is the wall clock of the training loop without its first step's start-up; others' work on the cores shows
in it. Prints a Markdown table; `ratio` is predicted over measured, `above process` leaves out what Python and its libraries hold before the first weight.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.startup import ask_for_huge_pages

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))


@dataclass(frozen=True)
class Shape:
    """One run: sizes of the base, words a prompt, and what differs from the defaults."""

    name: str
    hidden: int = 256
    layers: int = 4
    vocabulary: int = 8000
    words: int = 60
    answers: str = "delivery"
    rows: int = 48
    adaptation: str = "lora"
    quantization: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


SHAPES = (
    Shape("lora, hidden 256, 4 layers"),
    Shape("hidden 512, 6 layers", hidden=512, layers=6),
    Shape("hidden 768, 3 layers, rank 64", hidden=768, layers=3, options={"rank": 64}),
    Shape(
        "rows of 1,000 tokens", words=500, training={"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    ),
    Shape("vocabulary 64,000", vocabulary=64_000),
    Shape("long answers, vocabulary 32,000", vocabulary=32_000, words=20, answers="delivery " * 60),
    Shape("batch 32", training={"per_device_train_batch_size": 32}, rows=72),
    Shape(
        "4 x 4 accumulated", training={"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}, words=200
    ),
    Shape("gradient checkpointing", hidden=512, layers=6, words=100, training={"gradient_checkpointing": True}),
    Shape("grouped, fused head", vocabulary=32_000, training={"batching": "grouped"}),
    Shape("padded", training={"batching": "padded"}, words=120),
    Shape("DoRA", options={"dora": True}, words=120),
    Shape("qlora, nf4", hidden=512, layers=4, adaptation="qlora", quantization="nf4", words=120),
    Shape("qlora, int8", hidden=512, layers=4, adaptation="qlora", quantization="int8", words=120),
    Shape("bottleneck", adaptation="bottleneck", hidden=512, words=120),
    Shape("ia3", adaptation="ia3", hidden=512, words=120),
)
_STEPS = 4


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="names, or parts of them")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    chosen: list[Shape] = [
        shape for shape in SHAPES if not arguments.only or any(part in shape.name for part in arguments.only)
    ]
    print(f"{date.today()}, {platform.machine()}, {arguments.threads} threads\n")
    print("| shape | predicted MiB | measured MiB | ratio | above process | predicted s | measured s | ratio |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for shape, measured in all_measured(chosen, threads=arguments.threads):
        print(_row(shape.name, measured), flush=True)
    return 0


def all_measured(shapes: Sequence[Shape], *, threads: int) -> Iterator[tuple[Shape, dict[str, float]]]:
    """MiB and seconds, predicted and measured. Quantised shapes first: afterwards bitsandbytes is left out, as a worker does."""
    for shape in sorted(shapes, key=lambda shape: shape.quantization is None):
        _import_what_all_need(quantised=shape.quantization is not None)
        yield shape, measured(shape, threads=threads)


def _row(name: str, measured: dict[str, float]) -> str:
    above = measured["predicted_growth"] / measured["measured_growth"]
    return (
        f"| {name} | {measured['predicted']:,.0f} | {measured['measured']:,.0f} | {measured['predicted'] / measured['measured']:.2f} "
        f"| {above:.2f} | {measured['predicted_s']:.1f} | {measured['measured_s']:.1f} | {measured['predicted_s'] / measured['measured_s']:.2f} |"
    )


def measured(shape: Shape, *, threads: int) -> dict[str, float]:
    """MiB and seconds, predicted and measured, of one shape in a forked process. Raises RuntimeError when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "found.json"
        child = os.fork()
        if child == 0:
            status = 1
            try:
                answer.write_text(json.dumps(_run(shape, Path(folder), threads)))
                status = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)
        _, status = os.waitpid(child, 0)
        if status != 0:
            raise RuntimeError(f"{shape.name}: the process ended with {status}")
        return json.loads(answer.read_text())


def _import_what_all_need(*, quantised: bool) -> None:
    """Once for all the processes that are forked. PEFT and TRL look for bitsandbytes when they are imported."""
    ask_for_huge_pages()
    import datasets  # noqa: F401
    import mlflow  # noqa: F401
    import tiny_bases  # noqa: F401
    import torch

    if not quantised:
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
        from mlflow_finetune_plugin import pipeline  # noqa: F401
    torch.set_num_threads(1)  # threads that run would not survive the fork


def _run(shape: Shape, folder: Path, threads: int) -> dict[str, float]:
    import psutil
    import torch

    torch.set_num_threads(threads)
    from mlflow_finetune_plugin.config.run_config import RunConfig
    from mlflow_finetune_plugin.data.preparation import prepare
    from mlflow_finetune_plugin.jobs.report import Report
    from mlflow_finetune_plugin.planning.forecast import forecast_run
    from mlflow_finetune_plugin.planning.plan import data_request, make_plan, settle_on
    from mlflow_finetune_plugin.stages.train import train_adapter
    from mlflow_finetune_plugin.training.memory import PeakMemory

    _write_base_apart(shape, folder)
    plan = make_plan(RunConfig.model_validate(_config(shape, folder)))
    data = prepare(data_request(plan), plan.renderer, folder / "data")
    plan, forecast, why_not = forecast_run(settle_on(plan, data), data)
    if forecast is None:
        raise RuntimeError(why_not)
    before = psutil.Process().memory_info().rss
    with PeakMemory() as peak:
        trained = train_adapter(plan, data, folder, Report(folder / "report.jsonl"))
    return {
        "predicted": forecast.memory.training_and_loading / 2**20,
        "measured": peak.bytes / 2**20,
        "predicted_growth": (forecast.memory.training_and_loading - forecast.memory.process) / 2**20,
        "measured_growth": (peak.bytes - before) / 2**20,
        "predicted_s": forecast.seconds,
        "measured_s": trained.result.seconds,
    }


def _write_base_apart(shape: Shape, folder: Path) -> None:
    """In a process of its own, whose memory is gone before anything is measured."""
    child = os.fork()
    if child == 0:
        import torch
        from tiny_bases import tiny_base

        torch.set_num_threads(1)
        tiny_base(
            folder / "base",
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.hidden * 11 // 4,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.hidden // 64,
            num_key_value_heads=max(1, shape.hidden // 128),
            head_dim=64,
            max_position_embeddings=2048,
            initializer_range=0.02,
        )
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        raise RuntimeError(f"{shape.name}: the base was not written")


def _config(shape: Shape, folder: Path) -> dict[str, Any]:
    dice = random.Random(0)
    rows = [
        {"prompt": " ".join(str(dice.randint(0, 9)) for _ in range(shape.words)), "completion": shape.answers}
        for _ in range(shape.rows)
    ]
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "entry_point": "lora",
        "adaptation": shape.adaptation,
        "objective": "sft",
        "base_model": {"name": str(folder / "base"), "quantization": shape.quantization},
        "data": {"train": [{"path": str(path)}], "eval": 0.1},
        "options": shape.options,
        "training": {"max_steps": _STEPS, "save_steps": None, **shape.training},
        "eval": {"forgetting": False},
    }


if __name__ == "__main__":
    sys.exit(main())
