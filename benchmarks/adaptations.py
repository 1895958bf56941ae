"""Peak memory and tokens per second of every adaptation, beside plain TRL and PEFT with the same settings.

    python benchmarks/adaptations.py [--steps 20] [--batch 4] [--length 256] [--repeats 3]

Both sides train the same random 25M-parameter Llama on the same rows of equal length, in float32, without gradient
checkpointing. Each measurement is a process of its own, the sides take turns, and the median is shown. Memory is the
peak resident size of the process less what it held after its imports. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from budget import our_settings, trl_config

RATE, RANK = 1e-3, 16
ADAPTATIONS = ("lora", "qlora", "ia3", "bottleneck")
MIB = 1024


def make_base(folder: Path) -> None:
    """Random weights with the packaged tokenizer, as a user would have them on disk."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

    from mlflow_finetune_plugin.base_models.files import local_folder

    tokenizer = AutoTokenizer.from_pretrained(local_folder("embedded"))
    set_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def rows(arguments: argparse.Namespace) -> Any:
    import datasets
    import numpy as np

    shape = (arguments.steps * arguments.batch, arguments.length)
    ids = np.random.default_rng(0).integers(5, 500, shape).tolist()
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": ids})


def ours(name: str, folder: Path, arguments: argparse.Namespace, work: Path) -> float:
    """Seconds that the project's own pieces take to train; ends with the adapter in memory."""
    from mlflow_finetune_plugin.base_models import loading
    from mlflow_finetune_plugin.base_models.settings import BaseModelSettings
    from mlflow_finetune_plugin.jobs.report import Report
    from mlflow_finetune_plugin.methods import Method, load_method
    from mlflow_finetune_plugin.objectives import sft
    from mlflow_finetune_plugin.training.trainer import train

    adaptation = load_method("adaptation", name)
    settings = BaseModelSettings(name=str(folder), quantization=adaptation.QUANTIZATION)
    base = loading.find_base_model(settings, {})
    values = {"rank": RANK, "alpha": 32.0} if "rank" in adaptation.Options.model_fields else {}
    options = adaptation.resolve(adaptation.Options(**values), loading.describe(base), {})
    model = adaptation.apply(loading.load_base_model(base), options, seed=0, folder=work)
    training = our_settings(
        rate=RATE,
        steps=arguments.steps,
        batch=arguments.batch,
        batching="padded",
        max_batch_tokens=arguments.batch * arguments.length,
        max_length=arguments.length,
    )
    started = time.monotonic()
    train(
        model,
        loading.load_tokenizer(base),
        train_rows=rows(arguments),
        eval_rows=None,
        settings=training,
        method=Method(adaptation, options, sft, sft.Options()),
        folder=work,
        report=Report(work / "report.jsonl"),
    )
    return time.monotonic() - started


def plain(name: str, folder: Path, arguments: argparse.Namespace, work: Path) -> float:
    """Seconds that SFTTrainer with a PEFT config takes, written as TRL's documentation does."""
    import torch
    from peft import IA3Config, LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from trl import SFTTrainer

    keywords: dict[str, Any] = {"dtype": torch.float32}
    if name == "qlora":
        keywords["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    model = AutoModelForCausalLM.from_pretrained(folder, **keywords)
    low_rank = LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    config = trl_config(work, rate=RATE, steps=arguments.steps, batch=arguments.batch)
    started = time.monotonic()
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=rows(arguments),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=IA3Config(task_type="CAUSAL_LM") if name == "ia3" else low_rank,
    )
    trainer.train()
    return time.monotonic() - started


def measure(arguments: argparse.Namespace) -> None:
    """In a process of its own: prints seconds and MiB as JSON."""
    import bitsandbytes  # noqa: F401
    import trl  # noqa: F401

    from mlflow_finetune_plugin.training import trainer  # noqa: F401

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    side, name, folder = arguments.measure
    with tempfile.TemporaryDirectory() as work:
        seconds = (ours if side == "ours" else plain)(name, Path(folder), arguments, Path(work))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print("MEASURED" + json.dumps({"seconds": seconds, "mib": peak / MIB}))


def measured(side: str, name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", side, name, str(folder)]
    for key in ("steps", "batch", "length"):
        command += [f"--{key}", str(getattr(arguments, key))]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RuntimeError(f"{side} {name}: {process.stderr[-2000:]}")
    line = next(line for line in process.stdout.splitlines() if line.startswith("MEASURED"))
    return dict(json.loads(line.removeprefix("MEASURED")))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--adaptations", nargs="+", default=list(ADAPTATIONS), choices=ADAPTATIONS)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments)
        return
    tokens = arguments.steps * arguments.batch * arguments.length
    print(
        f"{arguments.steps} steps of {arguments.batch} x {arguments.length} tokens, {arguments.repeats} repeats, median\n"
    )
    print(
        "| adaptation | ours, tokens/s | TRL + PEFT, tokens/s | ours, peak MiB | TRL + PEFT, peak MiB |\n|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "base"
        make_base(folder)
        for adaptation in arguments.adaptations:
            sides = ("ours",) if adaptation == "bottleneck" else ("ours", "plain")
            runs = [
                {side: measured(side, adaptation, folder, arguments) for side in sides}
                for _ in range(arguments.repeats)
            ]
            cells = [
                [
                    statistics.median(scale(run[side]) for run in runs) if side in sides else None
                    for side in ("ours", "plain")
                ]
                for scale in (lambda m: tokens / m["seconds"], lambda m: m["mib"])
            ]
            shown = [f"{cell:,.0f}" if cell is not None else "PEFT has none" for pair in cells for cell in pair]
            print(f"| {adaptation} | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    main()
