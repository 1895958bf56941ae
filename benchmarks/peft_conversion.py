"""Measure what a conversion to plain LoRA loses, for each convertible or merged method of PEFT, on the embedded base.

``python benchmarks/peft_conversion.py METHOD...`` trains 20 steps, cuts the update of every layer to a rank by its singular values, and
prints the largest difference of a token's log-probability.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from peft_rates import BATCH, DATA, padded, rows

from mlflow_finetune_plugin.base_models import loading
from mlflow_finetune_plugin.base_models.settings import BaseModelSettings
from mlflow_finetune_plugin.methods import load_method

RANKS = (8, 16, 32, 64, 128)


def main() -> None:
    torch.set_num_threads(1)
    for method in sys.argv[1:]:
        print(f"| {method} | " + " | ".join(f"{nats:.2g}" for nats in measure(method)) + " |", flush=True)


def measure(method: str) -> list[float]:
    """Return the largest difference in nats for each rank."""
    base = loading.find_base_model(BaseModelSettings(), {})
    facts = loading.describe(base)
    adaptation = load_method("adaptation", method)
    options = adaptation.resolve(adaptation.Options(), facts, {})
    model = adaptation.apply(loading.load_base_model(base), options, seed=0, folder=Path())
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=adaptation.learning_rate(facts)[0], weight_decay=0.0
    )
    batch = padded(rows(loading.load_tokenizer(base), DATA / "train.jsonl")[: 4 * BATCH])
    for _ in range(20):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    plain = loading.load_base_model(base).eval()
    merged = model.merge_and_unload().eval()
    expected = log_probs(merged, batch)
    updates = {
        name: torch.linalg.svd(merged.get_parameter(name) - weight, full_matrices=False)
        for name, weight in plain.named_parameters()
        if weight.ndim == 2 and not torch.equal(weight, merged.get_parameter(name))
    }
    weights = {name: plain.get_parameter(name).detach().clone() for name in updates}
    largest = []
    for rank in RANKS:
        for name, (left, sizes, right) in updates.items():
            cut = (left[:, :rank] * sizes[:rank]) @ right[:rank]
            plain.get_parameter(name).data = weights[name] + cut
        largest.append(float((log_probs(plain, batch) - expected).abs().max()))
    return largest


def log_probs(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the log-probability of every next token, in nats."""
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    following = batch["input_ids"][:, 1:, None]
    return torch.log_softmax(logits, -1).gather(-1, following)[batch["attention_mask"][:, 1:].bool()]


if __name__ == "__main__":
    main()
