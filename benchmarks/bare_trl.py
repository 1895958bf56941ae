"""Plain TRL doing the quickstart's job, as its documentation would have you write it: the other side of our benchmarks.

    python benchmarks/bare_trl.py BASE TRAIN.jsonl OUT [--steps N | --epochs N] [--rank 16] [--lr 2e-3] [--batch 16] [--seed 0]

Rows are ``{"prompt", "completion"}``. Writes OUT/first_step (seconds since the epoch) and the adapter to OUT/adapter.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import mlflow
import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer


class FirstStep(TrainerCallback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.path.write_text(str(time.time()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("base")
    parser.add_argument("train")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=-1)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    tokenizer = AutoTokenizer.from_pretrained(arguments.base)
    model = AutoModelForCausalLM.from_pretrained(arguments.base, dtype=torch.float32)
    rows = load_dataset("json", data_files=arguments.train, split="train", cache_dir=str(arguments.out / "cache"))
    if tokenizer.chat_template:
        rows = rows.map(
            lambda row: {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["completion"]}],
            }
        )
    else:
        rows = rows.map(lambda row: {"prompt": row["prompt"] + "\n", "completion": row["completion"]})
    config = SFTConfig(
        output_dir=str(arguments.out / "trainer"),
        per_device_train_batch_size=arguments.batch,
        learning_rate=arguments.lr,
        num_train_epochs=arguments.epochs,
        max_steps=arguments.steps,
        warmup_steps=0.05,
        seed=arguments.seed,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        bf16=False,
        save_strategy="no",
        report_to="mlflow",
        logging_steps=2,
        disable_tqdm=True,
        packing=False,
    )
    lora = LoraConfig(r=arguments.rank, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[FirstStep(arguments.out / "first_step")],
    )
    with mlflow.start_run():
        started = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - started
    trainer.model.save_pretrained(arguments.out / "adapter")
    tokenizer.save_pretrained(arguments.out / "adapter")
    (arguments.out / "seconds").write_text(str(seconds))


if __name__ == "__main__":
    main()
