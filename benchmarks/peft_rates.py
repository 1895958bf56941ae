"""Compare learning rates of PEFT's methods on the embedded base: a short training, and the loss of held-out answers.

``python benchmarks/peft_rates.py METHOD RATE... [--steps 60]`` prints one row of a table for each rate.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch

from mlflow_finetune_plugin.base_models import loading
from mlflow_finetune_plugin.base_models.settings import BaseModelSettings
from mlflow_finetune_plugin.methods import load_method

DATA = Path(__file__).resolve().parent.parent / "recipes" / "quickstart" / "data"
BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method")
    parser.add_argument("rates", type=float, nargs="+")
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for rate in arguments.rates:
        first, last = measure(arguments.method, rate, arguments.steps)
        print(f"| {arguments.method} | {rate:g} | {first:.3f} | {last:.3f} |", flush=True)


def measure(method: str, rate: float, steps: int) -> tuple[float, float]:
    """Return the loss of held-out answers before and after the training, in nats per token."""
    base = loading.find_base_model(BaseModelSettings(), {})
    facts, tokenizer = loading.describe(base), loading.load_tokenizer(base)
    adaptation = load_method("adaptation", method)
    options = adaptation.resolve(adaptation.Options(), facts, {})
    model = adaptation.apply(loading.load_base_model(base), options, seed=0, folder=Path())
    train, held_out = (rows(tokenizer, DATA / f"{name}.jsonl") for name in ("train", "test"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    first = held_out_loss(model, held_out)
    random.Random(0).shuffle(train)
    model.train()
    for step in range(steps):
        start = step * BATCH % (len(train) - BATCH)
        model(**padded(train[start : start + BATCH])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return first, held_out_loss(model, held_out)


def rows(tokenizer, file: Path) -> list[tuple[list[int], list[int]]]:
    """Return token ids of prompts and completions."""
    read = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [(tokenizer(row["prompt"]).input_ids, tokenizer(" " + row["completion"]).input_ids) for row in read]


def padded(pairs: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    width = max(len(prompt) + len(answer) for prompt, answer in pairs)
    ids = [[*prompt, *answer] + [0] * (width - len(prompt) - len(answer)) for prompt, answer in pairs]
    labels = [[-100] * len(prompt) + answer + [-100] * (width - len(prompt) - len(answer)) for prompt, answer in pairs]
    mask = [[1] * (len(prompt) + len(answer)) + [0] * (width - len(prompt) - len(answer)) for prompt, answer in pairs]
    return {
        "input_ids": torch.tensor(ids),
        "labels": torch.tensor(labels),
        "attention_mask": torch.tensor(mask),
    }


def held_out_loss(model, held_out: list[tuple[list[int], list[int]]]) -> float:
    model.eval()
    with torch.inference_mode():
        return float(model(**padded(held_out[:64])).loss)


if __name__ == "__main__":
    main()
