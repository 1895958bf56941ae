"""DPO and KTO on conversations of mixed length: ours and TRL's trainers with their defaults, side by side.

    python benchmarks/preferences.py CONVERSATIONS [--objective dpo kto] [--steps 20] [--batch 8] [--chats 180] [--repeats 2]

CONVERSATIONS is any file of chats that the project reads. The better answer of a pair is the last turn of a chat, the worse one
that of the next chat; for KTO both are rated rows. All sides start from the same random 25M-parameter Llama in float32 with the
same LoRA, and get the same token ids, rows a step, optimiser, learning rate and seed, without gradient checkpointing. DPO's rows
come in the same order; TRL's KTOTrainer takes them in the order of the file, and ours shuffles them. Each repeat of a side is a process of its own, so that its peak memory is its own; the sides take turns, and the
median is shown. A step takes each row once: 20 steps of 8 are one epoch of 162 pairs. The time of the reference is part of every side. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from budget import our_settings, trl_config
from mixed_lengths import RANK, adapted_model, tokenizer_for
from own_process import Figures, compare, measured, table_row

from mlflow_finetune_plugin.data import DataFile, DataRequest, prepare
from mlflow_finetune_plugin.data.sources.rows import read_rows
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.methods import Method, load_method
from mlflow_finetune_plugin.training.row_trainers.ratings import borrowed, partners
from mlflow_finetune_plugin.training.trainer import train

RATE = 5e-5
SIDES = ("TRL defaults", "TRL, reference first", "ours")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("conversations", type=Path)
    parser.add_argument("--objective", nargs="+", default=["dpo", "kto"], choices=["dpo", "kto"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--chats", type=int, default=180, help="chats of the file that are used; a tenth is held out")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--side", help=argparse.SUPPRESS)  # runs one side, for the parent process
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(run_side(arguments)))
        return
    for objective, figures in compare(arguments, arguments.objective, SIDES, ("steps", "batch", "chats")).items():
        print_table(objective, arguments, figures)


def run_side(arguments: argparse.Namespace) -> dict[str, float]:
    (objective,) = arguments.objective
    tokenizer = tokenizer_for(arguments.conversations)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = preference_rows(arguments, objective, tokenizer, folder)
        model = adapted_model(tokenizer)
        side = ours if arguments.side == "ours" else trl
        figures = measured(lambda: side(model, tokenizer, rows, objective, arguments, folder))
        tokens = sum(map(len, rows["input_ids"]))
        tokens += sum(map(len, rows["rejected_ids"])) if objective == "dpo" else 0
        return {**figures, "rows": len(rows), "tokens": tokens}


def preference_rows(arguments: argparse.Namespace, objective: str, tokenizer: Any, folder: Path) -> Any:
    """Return the pairs, or the rated rows, as the project's own preparation writes them."""
    chats = [
        row["messages"] for _, row in read_rows(arguments.conversations) if row["messages"][-1]["role"] == "assistant"
    ]
    if len(chats) > arguments.chats:
        chats = random.Random(0).sample(chats, arguments.chats)
    pairs = [
        {"prompt": chat[:-1], "chosen": chat[-1:], "rejected": other[-1:]}
        for chat, other in zip(chats, chats[1:] + chats[:1], strict=True)
    ]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    request = DataRequest(
        train=(DataFile(path, "chat", 1.0),),
        eval=0.1,
        layout="auto",
        columns={},
        overlength="drop",
        max_length=4096,
        max_eval_rows=50,
        seed=0,
        form=load_method("objective", objective).ROWS,
    )
    return prepare(request, ChatRenderer(tokenizer, None), folder).train


def ours(model, tokenizer, rows, objective: str, arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    longest = max(map(len, rows["input_ids"]))
    settings = our_settings(
        rate=RATE,
        steps=arguments.steps,
        batch=arguments.batch,
        batching="packed",
        max_batch_tokens=arguments.batch * longest,
        max_length=4096,
    )
    method = load_method("objective", objective)
    options = method.Options(loss_type=["sigmoid"]) if objective == "dpo" else method.Options()
    lora = load_method("adaptation", "lora")
    report = folder / "report.jsonl"
    train(
        model,
        tokenizer,
        train_rows=rows,
        eval_rows=None,
        settings=settings,
        method=Method(lora, lora.Options(rank=RANK, alpha=32.0), method, options),
        folder=folder,
        report=Report(report),
    )
    logs = [json.loads(line) for line in report.read_text().splitlines()]
    last = [log["values"] for log in logs if log["event"] == "metrics" and "train/loss" in log["values"]][-1]
    return {"loss": last["train/loss"], "margin": last["train/rewards/margins"]}


def trl(model, tokenizer, rows, objective: str, arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

    trainer_class, config_class = (DPOTrainer, DPOConfig) if objective == "dpo" else (KTOTrainer, KTOConfig)
    base = trl_config(folder, rate=RATE, steps=arguments.steps, batch=arguments.batch)
    shared = {
        name: getattr(base, name)
        for name in ("output_dir", "learning_rate", "max_steps", "per_device_train_batch_size", "lr_scheduler_type")
    }
    config = config_class(
        **shared,
        precompute_ref_log_probs=arguments.side == "TRL, reference first",
        max_length=None,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_steps=base.logging_steps,
        logging_first_step=base.logging_first_step,
        disable_tqdm=True,
        warmup_steps=base.warmup_steps,
        seed=base.seed,
        data_seed=base.data_seed,
    )

    class TokensTaken(trainer_class):
        def _prepare_dataset(self, dataset, *_, **__):
            return dataset

    trainer = TokensTaken(model=model, args=config, train_dataset=as_trl(rows, objective), processing_class=tokenizer)
    if "ref" in model.peft_config:
        model.delete_adapter("ref")  # the base, with the adapter disabled, is the same reference
    trainer.train()
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    return {"loss": last["loss"], "margin": last["rewards/margins"]}


def as_trl(rows: Any, objective: str) -> Any:
    import datasets

    start = [next(i for i, label in enumerate(row["labels"]) if label != -100) for row in rows]
    columns = {
        "prompt_ids": [row["input_ids"][:n] for row, n in zip(rows, start, strict=True)],
        "chosen_ids" if objective == "dpo" else "completion_ids": [
            row["input_ids"][n:] for row, n in zip(rows, start, strict=True)
        ],
    }
    if objective == "dpo":
        columns["rejected_ids"] = [row["rejected_ids"][n:] for row, n in zip(rows, start, strict=True)]
    else:
        others = [borrowed(row, rows[int(i)]) for row, i in zip(rows, partners(len(rows), 0), strict=True)]
        columns["KL_completion_ids"] = [other["borrowed_ids"][n:] for other, n in zip(others, start, strict=True)]
        columns["label"] = rows["is_good"]
    return datasets.Dataset.from_dict(columns)


def print_table(objective: str, arguments: argparse.Namespace, figures: dict[str, Figures]) -> None:
    print(
        f"\n{objective}: {figures['ours']['rows']:,.0f} rows with {figures['ours']['tokens']:,.0f} tokens; {arguments.steps} steps of "
        f"{arguments.batch} rows, cpu, {torch.get_num_threads()} threads, {arguments.repeats} repeats\n"
    )
    print("| | s | processor s | against TRL | peak MiB beside the model | last loss | last margin |")
    print("|---|---|---|---|---|---|---|")
    for side in SIDES:
        of = figures[side]
        print(table_row(side, of, figures[SIDES[0]], f"{of['loss']:.4f}", f"{of['margin']:.4f}"))


if __name__ == "__main__":
    main()
