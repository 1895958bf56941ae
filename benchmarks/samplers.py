"""Seconds of sampling a step of ``grpo`` with each sampler that runs without a GPU.

    PYTHONPATH=tests:tests/support python benchmarks/samplers.py

Both samplers train a few steps in turn. Prints the median seconds in which the completions of a step were sampled, and the seconds of
the whole training, in which the engine is started. ``wide`` is a random base with a hidden size of 256 and four layers.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
from engine_process import EMBEDDED
from peft import LoraConfig, get_peft_model
from prompt_rows import contains, prompt_rows, renderer_of
from tiny_bases import tiny_base
from training.trained import logged, run
from transformers import AutoModelForCausalLM

from mlflow_finetune_plugin.methods import load_method
from mlflow_finetune_plugin.threads import choose_threads

STEPS = 4
COMPLETIONS = 64
SUMS = [(f"What is {a} plus {b}?", None) for a in range(1, 9) for b in range(1, 6)]


def measure(base: Path, folder: Path, sampler: str, length: int) -> tuple[float, float]:
    """Return the median seconds of sampling a step, and the seconds of the whole training."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.set_num_threads(choose_threads(model.config.hidden_size).count)
    lora = LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    options = load_method("objective", "grpo").Options(
        rewards=[contains("1")],
        max_completion_length=length,
        start_prompts=2,
        start_check=False,
        sampler=sampler,
    )
    renderer = renderer_of(base)
    started = time.monotonic()
    run(
        base,
        folder,
        model=get_peft_model(model, lora),
        rows=prompt_rows(renderer, SUMS),
        objective="grpo",
        objective_options=options,
        renderer=renderer,
        max_steps=STEPS,
        per_device_train_batch_size=COMPLETIONS,
        learning_rate=1e-4,
    )
    seconds = statistics.median(value for _, value in logged(folder, "train/sampling/seconds"))
    return seconds, time.monotonic() - started


def main() -> None:
    """Print a table."""
    with tempfile.TemporaryDirectory() as scratch:
        wide = tiny_base(
            Path(scratch) / "base",
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=4,
        )
        for name, base, length in (("embedded", EMBEDDED, 8), ("wide", wide, 32)):
            for sampler in ("trainer", "engine"):
                sampling, total = measure(base, Path(scratch) / f"{name}-{length}-{sampler}", sampler, length)
                print(
                    f"{name} {length} {sampler}: sampling {sampling:.2f} s, training {total:.1f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
