"""GRPO and RLOO on the same prompts: ours and TRL's trainers, side by side.

    python benchmarks/rewards.py CONVERSATIONS [--objective grpo rloo] [--steps 5] [--prompts 4] [--generations 4] [--repeats 2]

CONVERSATIONS is any file of chats that the project reads; what stands before the last answer of a chat is a prompt. Both sides start
from the same random 25M-parameter Llama in float32 with the same LoRA, and get the same prompts as token ids in the same order,
loss, KL coefficient, rate and seed. TRL's reference is its second adapter, ours the weights of the start. The reward is the share
of lower-case letters of a completion; TRL calls the function, ours calls it in a process of its own. Each repeat of a side
is a process of its own, so that its peak memory is its own; the sides take turns, and the median is shown. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import datasets
import torch
from budget import our_settings
from mixed_lengths import RANK, adapted_model, tokenizer_for
from own_process import Figures, compare, measured, table_row

from mlflow_finetune_plugin.data.sources.rows import read_rows
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.methods import Method, load_method
from mlflow_finetune_plugin.training.trainer import train

RATE = 5e-5
COMPLETION_TOKENS = 48
LONGEST_PROMPT = 256
SIDES = ("TRL", "ours")
FIGURES = ("reward", "kl", "entropy", "grad_norm")
REWARD = """
def score(completion):
    return sum(letter.islower() for letter in completion) / max(1, len(completion))
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("conversations", type=Path)
    parser.add_argument("--objective", nargs="+", default=["grpo", "rloo"], choices=["grpo", "rloo"])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=4, help="prompts of a step")
    parser.add_argument("--generations", type=int, default=4, help="completions of a prompt")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--side", help=argparse.SUPPRESS)  # runs one side, for the parent process
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(run_side(arguments)))
        return
    for objective, figures in compare(
        arguments, arguments.objective, SIDES, ("steps", "prompts", "generations")
    ).items():
        print_table(objective, arguments, figures)


def run_side(arguments: argparse.Namespace) -> dict[str, float]:
    (objective,) = arguments.objective
    tokenizer = tokenizer_for(arguments.conversations)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = prompt_rows(arguments, ChatRenderer(tokenizer, None))
        model = adapted_model(tokenizer)
        side = ours if arguments.side == "ours" else trl
        return measured(lambda: side(model, tokenizer, rows, objective, arguments, folder))


def prompt_rows(arguments: argparse.Namespace, renderer: ChatRenderer) -> datasets.Dataset:
    """Return as many prompts as the steps take, as the data room writes them."""
    chats = [
        row["messages"][:-1]
        for _, row in read_rows(arguments.conversations)
        if row["messages"][-1]["role"] == "assistant"
    ]
    encoded = [(chat, ids[0].input_ids) for chat, ids in zip(chats, renderer.encode_prompts(chats), strict=True)]
    short = [(chat, ids) for chat, ids in encoded if len(ids) <= LONGEST_PROMPT]
    chosen = short[: arguments.steps * arguments.prompts]
    return datasets.Dataset.from_dict(
        {
            "input_ids": [ids for _, ids in chosen],
            "labels": [[-100] * len(ids) for _, ids in chosen],
            "task": ["chat"] * len(chosen),
            "messages": [json.dumps(chat) for chat, _ in chosen],
            "fields": ["{}"] * len(chosen),
        }
    )


def ours(model, tokenizer, rows, objective: str, arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    settings = our_settings(
        rate=RATE, steps=arguments.steps, batch=arguments.prompts * arguments.generations, max_length=4096
    ).model_copy(update={"logging_steps": 1, "lr_scheduler_type": "constant"})
    (folder / "reward.py").write_text(REWARD)
    method, lora = load_method("objective", objective), load_method("adaptation", "lora")
    options = method.Options(
        rewards=[f"{folder}/reward.py:score"],
        num_generations=arguments.generations,
        max_completion_length=COMPLETION_TOKENS,
        beta=0.04,
        start_check=False,
        start_prompts=1,
    )
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
        renderer=ChatRenderer(tokenizer, None),
    )
    logs = [json.loads(line) for line in report.read_text().splitlines()]
    values = [log["values"] for log in logs if log["event"] == "metrics" and "train/reward" in log["values"]]
    return {name: statistics.mean(log[f"train/{name}"] for log in values) for name in FIGURES}


def trl(model, tokenizer, rows, objective: str, arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    trainer_class, config_class = (GRPOTrainer, GRPOConfig) if objective == "grpo" else (RLOOTrainer, RLOOConfig)
    method = load_method("objective", objective)
    same = method.Options()
    more = {"loss_type": same.loss_type, "scale_rewards": same.scale_rewards} if objective == "grpo" else {}
    config = config_class(
        output_dir=str(folder),
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.prompts * arguments.generations,
        num_generations=arguments.generations,
        max_completion_length=COMPLETION_TOKENS,
        beta=0.04,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        seed=0,
        data_seed=0,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
        **more,
    )

    class TokensTaken(trainer_class):
        def _tokenize_prompts(self, prompts):
            return [list(ids) for ids in prompts], None, {}

    scope: dict[str, Any] = {}
    exec(REWARD, scope)
    trainer = TokensTaken(
        model=model,
        args=config,
        reward_funcs=lambda completions, **_: [scope["score"](text) for text in completions],
        train_dataset=rows.select_columns(["input_ids"]).rename_column("input_ids", "prompt"),
        processing_class=tokenizer,
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "reward" in log]
    return {name: statistics.mean(log[name] for log in logs) for name in FIGURES}


def print_table(objective: str, arguments: argparse.Namespace, figures: dict[str, Figures]) -> None:
    print(
        f"\n{objective}: {arguments.steps} steps of {arguments.prompts} prompts with {arguments.generations} completions of at most "
        f"{COMPLETION_TOKENS} tokens, cpu, {torch.get_num_threads()} threads, {arguments.repeats} repeats\n"
    )
    print(
        "| | s | processor s | against TRL | peak MiB beside the model | mean reward | mean KL | mean gradient norm |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for side in SIDES:
        of = figures[side]
        print(
            table_row(side, of, figures[SIDES[0]], f"{of['reward']:.4f}", f"{of['kl']:.2e}", f"{of['grad_norm']:.4f}")
        )


if __name__ == "__main__":
    main()
