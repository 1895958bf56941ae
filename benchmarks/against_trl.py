"""Base, our adapter and plain TRL's at the same budget: dtype, rows, batch, steps, rank, learning rate, seed.

    python benchmarks/against_trl.py BASE TRAIN EVAL [--epochs 3] [--lr 2e-3] [--rank 16] [--seeds 0 1] [--columns prompt=text,completion=category]

TRAIN and EVAL are any files the project reads (CSV, JSONL, ...). TRL gets the same rows as prompt/completion JSONL. All three
sides answer the same held-out rows through the same greedy decoding; the exact matches of both adapters come with the paired
interval of their difference. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from mlflow import MlflowClient
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from mlflow_finetune_plugin.data.conversations.conversion import to_conversation
from mlflow_finetune_plugin.data.conversations.layouts import detect_layout
from mlflow_finetune_plugin.data.sources.rows import peek, read_rows
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.evaluation.generation import greedy_answers
from mlflow_finetune_plugin.evaluation.intervals import paired_binary_interval

ROOT = Path(__file__).resolve().parent.parent


def as_pairs(path: Path) -> list[tuple[str, str]]:
    layout = detect_layout([row for _, row in peek(path)])
    conversations = [to_conversation(layout, row).messages for _, row in read_rows(path)]
    return [(messages[0]["content"], messages[1]["content"]) for messages in conversations]


def ours(arguments: argparse.Namespace, seed: int, folder: Path, environment: dict[str, str]) -> dict[str, object]:
    parameters = {
        "base_model": arguments.base,
        "data": arguments.train,
        "eval_data": arguments.eval,
        "rank": arguments.rank,
        "alpha": 32,
        "learning_rate": arguments.lr,
        "num_train_epochs": arguments.epochs,
        "per_device_train_batch_size": arguments.batch,
        "gradient_accumulation_steps": 1,
        "warmup_steps": 0.05,
        "seed": seed,
        "dtype": "float32",
        "metrics": "exact_match",
        "max_new_tokens": arguments.max_new_tokens,
    }
    project = folder / "project"
    project.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "run", str(project), "-b", "finetune", "-e", "lora"]
    for name, value in parameters.items():
        command += ["-P", f"{name}={value}"]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise SystemExit(result.stderr)
    client = MlflowClient(environment["MLFLOW_TRACKING_URI"])
    run = client.search_runs(
        [experiment.experiment_id for experiment in client.search_experiments()],
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )[0]
    table = json.loads(Path(client.download_artifacts(run.info.run_id, "proof/rows.json", str(folder))).read_text())
    records = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    return {
        "base": [int(record["base_exact_match"]) for record in records],
        "adapter": [int(record["adapter_exact_match"]) for record in records],
        "seconds": run.data.metrics["train/seconds"],
    }


def trl(arguments: argparse.Namespace, seed: int, folder: Path, environment: dict[str, str]) -> dict[str, object]:
    rows = folder / "train.jsonl"
    with rows.open("w", encoding="utf-8") as stream:
        for prompt, completion in as_pairs(Path(arguments.train)):
            stream.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")
    out = folder / f"trl-{seed}"
    command = [sys.executable, str(ROOT / "benchmarks/bare_trl.py"), arguments.base, str(rows), str(out)]
    command += ["--epochs", str(arguments.epochs), "--rank", str(arguments.rank), "--lr", str(arguments.lr)]
    command += ["--batch", str(arguments.batch), "--seed", str(seed)]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise SystemExit(result.stderr[-3000:])
    tokenizer = AutoTokenizer.from_pretrained(arguments.base)
    base = AutoModelForCausalLM.from_pretrained(arguments.base, dtype="float32")
    model = PeftModel.from_pretrained(base, out / "adapter").eval()
    renderer = ChatRenderer(tokenizer)
    pairs = as_pairs(Path(arguments.eval))
    questions = [[{"role": "user", "content": prompt}] for prompt, _ in pairs]
    options = {"chat_template": renderer.chat_template, "add_generation_prompt": True, "return_dict": False}
    prompts = tokenizer.apply_chat_template(questions, **options)
    answers = greedy_answers(
        model,
        prompts,
        max_new_tokens=arguments.max_new_tokens,
        stop_token_ids=renderer.stop_token_ids,
        pad_token_id=tokenizer.pad_token_id or 0,
    )
    texts = [tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in answers]
    correct = [int(text == reference.strip()) for text, (_, reference) in zip(texts, pairs, strict=True)]
    return {"adapter": correct, "seconds": float((out / "seconds").read_text())}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("base", "train", "eval"):
        parser.add_argument(name, type=lambda text: str(Path(text).resolve()))
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=24)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    print(
        f"{Path(arguments.base).name}, {Path(arguments.train).parent.name}; {arguments.epochs:g} epochs, batch {arguments.batch}, rank {arguments.rank}, lr {arguments.lr:g}\n"
    )
    print(
        "| seed | base | ours | plain TRL | ours - TRL (95 % CI) | train s, ours | train s, TRL |\n|---|---|---|---|---|---|---|"
    )
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            environment = {
                **os.environ,
                "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
                "MLFLOW_FINETUNE_HOME": str(folder / "home"),
                "HF_HUB_OFFLINE": "1",
                "MLFLOW_DISABLE_TELEMETRY": "true",
            }
            mine, theirs = ours(arguments, seed, folder, environment), trl(arguments, seed, folder, environment)
        gap = paired_binary_interval(np.array(theirs["adapter"]), np.array(mine["adapter"]))
        print(
            f"| {seed} | {np.mean(mine['base']):.3f} | {np.mean(mine['adapter']):.3f} | {np.mean(theirs['adapter']):.3f} | "
            f"{gap.value:+.3f} ({gap.low:+.3f}..{gap.high:+.3f}) | {mine['seconds']:.0f} | {theirs['seconds']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
