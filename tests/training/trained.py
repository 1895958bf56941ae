"""A tiny training run through the room's own door, and what it said."""

import math
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from mlflow_finetune_plugin.adaptations import full, lora
from mlflow_finetune_plugin.base_models.loading import BaseModel
from mlflow_finetune_plugin.config.sections import TrainingSettings
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.jobs.report import Report, ReportReader
from mlflow_finetune_plugin.methods import Method, load_method
from mlflow_finetune_plugin.training.checkpoints import Checkpoint
from mlflow_finetune_plugin.training.processes import ALONE, Processes
from mlflow_finetune_plugin.training.saving import Saves
from mlflow_finetune_plugin.training.trainer import TrainingResult, train

IGNORED = -100


def adapted(base: Path, dropout: float = 0.0) -> torch.nn.Module:
    """A LoRA whose B is not zero, so that every weight has a gradient."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, lora_dropout=dropout)
    model = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.mul_(0.05)
    return model


def all_trained(base: Path, dropout: float = 0.0) -> torch.nn.Module:
    """The same base with all its weights trained; there is nothing that dropout could act on."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    modules = sorted({name.split(".")[0] for name, _ in model.named_modules() if name})
    return full.apply(model, full.Options(modules=modules), seed=0, folder=base)


def rows_of(lengths: list[tuple[int, int]]) -> datasets.Dataset:
    """(prompt, answer) lengths; loss on the answer only."""
    generator = torch.Generator().manual_seed(7)
    ids = [torch.randint(7, 299, (p + a,), generator=generator).tolist() for p, a in lengths]
    labels = [[IGNORED] * p + row[p:] for row, (p, _) in zip(ids, lengths, strict=True)]
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": labels, "task": ["t"] * len(ids)})


LENGTHS = [(5, 3), (9, 1), (2, 7), (12, 4), (3, 3), (8, 2), (4, 9), (6, 5)]


def run(
    base: Path,
    folder: Path,
    *,
    rows: datasets.Dataset,
    eval_rows: datasets.Dataset | None = None,
    model: torch.nn.Module | None = None,
    adaptation: str = "lora",
    options: lora.Options | None = None,
    objective: str = "sft",
    objective_options: Any = None,
    saves: Saves | None = None,
    checkpoint: Checkpoint | None = None,
    processes: Processes = ALONE,
    expected_tokens_per_s: float | None = None,
    renderer: ChatRenderer | None = None,
    **settings: object,
) -> tuple[TrainingResult, torch.nn.Module]:
    model = model or adapted(base)
    values = {
        "num_train_epochs": 1.0,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": len(rows),
        "gradient_accumulation_steps": 1,
        "max_length": 128,
        "batching": "packed",
        "max_batch_tokens": 512,
        "save_steps": None,
        "warmup_steps": 0.0,
        "gradient_checkpointing": False,
        "bf16": False,
        "logging_steps": 1,
        **settings,
    }
    folder.mkdir(parents=True, exist_ok=True)
    result = train(
        model,
        AutoTokenizer.from_pretrained(base),
        train_rows=rows,
        eval_rows=eval_rows,
        settings=TrainingSettings(**values),
        method=Method(
            load_method("adaptation", adaptation),
            options or lora.Options(rank=4, alpha=8.0),
            load_method("objective", objective),
            objective_options or load_method("objective", objective).Options(),
        ),
        folder=folder,
        report=Report(folder / "report.jsonl"),
        saves=saves,
        checkpoint=checkpoint,
        processes=processes,
        expected_tokens_per_s=expected_tokens_per_s,
        renderer=renderer,
        base=BaseModel(str(base), base, None, torch.float32, None, trust_remote_code=False),
    )
    return result, model


def events(folder: Path, kind: str) -> list[dict]:
    return [event for event in ReportReader(folder / "report.jsonl").new_events() if event["event"] == kind]


def logged(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(e["step"], float(e["values"][name])) for e in events(folder, "metrics") if name in e["values"]]


def naive_loss(model: torch.nn.Module, rows: datasets.Dataset) -> torch.Tensor:
    """Mean over all answer tokens of all rows, one row at a time, no padding, no library loss."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), row["labels"]
        log_probs = torch.log_softmax(model(ids).logits[0].double(), dim=-1)
        for position, label in enumerate(labels):
            if label != IGNORED:
                total = total - log_probs[position - 1, label]
                count += 1
    return total / count


def naive_norm(model: torch.nn.Module) -> float:
    return math.sqrt(sum(float(p.grad.double().pow(2).sum()) for p in model.parameters() if p.grad is not None))
