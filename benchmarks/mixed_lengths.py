"""Training on conversations of mixed length: ours and TRL's SFTTrainer with its defaults, side by side.

    python benchmarks/mixed_lengths.py CONVERSATIONS [--steps 20] [--batch 8] [--repeats 2] [--batching packed grouped padded]

CONVERSATIONS is any file the project reads. Both sides start from the same random 25M-parameter Llama in float32 with the same
LoRA, and get the same token ids, labels, rows a step, optimiser, learning rate and seed, without gradient checkpointing. The
sides take turns; the median is shown. Held-out loss is computed by one naive function, a row at a time. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from budget import our_settings, trl_config
from held_out import held_out_loss
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import SFTTrainer

from mlflow_finetune_plugin.adaptations import lora
from mlflow_finetune_plugin.data import DataFile, DataRequest, prepare
from mlflow_finetune_plugin.data.conversations.conversion import to_conversation
from mlflow_finetune_plugin.data.conversations.layouts import detect_layout
from mlflow_finetune_plugin.data.sources.rows import peek, read_rows
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.methods import Method
from mlflow_finetune_plugin.objectives import sft
from mlflow_finetune_plugin.training.trainer import train

CHATML = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
RATE, RANK = 2e-4, 16


Times = tuple[float, float]
"""Seconds on the clock, and of the processor: the second does not count who else uses the cores."""


def _since(started: Times) -> Times:
    return time.monotonic() - started[0], time.process_time() - started[1]


def tokenizer_for(path: Path) -> PreTrainedTokenizerFast:
    layout = detect_layout([row for _, row in peek(path)])
    texts = [m["content"] for _, row in read_rows(path) for m in to_conversation(layout, row).messages]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8192, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|im_end|>", pad_token="<pad>", chat_template=CHATML
    )


def adapted_model(tokenizer: PreTrainedTokenizerFast) -> torch.nn.Module:
    set_seed(0)
    shape = LlamaConfig(
        vocab_size=8192,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=10,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    adapter = LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(LlamaForCausalLM(shape), adapter)


def ours(model, tokenizer, rows, batching: str, arguments: argparse.Namespace, folder: Path) -> tuple[Times, float]:
    settings = our_settings(
        rate=RATE,
        steps=arguments.steps,
        batch=arguments.batch,
        batching=batching,
        max_batch_tokens=arguments.max_batch_tokens or arguments.batch * max(len(ids) for ids in rows["input_ids"]),
        max_length=4096,
    )
    started = time.monotonic(), time.process_time()
    result = train(
        model,
        tokenizer,
        train_rows=rows,
        eval_rows=None,
        settings=settings,
        method=Method(lora, lora.Options(rank=RANK, alpha=32.0), sft, sft.Options()),
        folder=folder,
        report=Report(folder / "report.jsonl"),
    )
    return _since(started), result.losses[-1][1]


def trl(model, tokenizer, rows, arguments: argparse.Namespace, folder: Path) -> tuple[Times, float]:
    config = trl_config(folder, rate=RATE, steps=arguments.steps, batch=arguments.batch)
    started = time.monotonic(), time.process_time()
    trainer = SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    return _since(started), next(entry["loss"] for entry in reversed(trainer.state.log_history) if "loss" in entry)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("conversations", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max-batch-tokens", type=int)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--batching", nargs="+", default=["packed", "grouped", "padded"])
    arguments = parser.parse_args()
    tokenizer = tokenizer_for(arguments.conversations)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sides = ["TRL defaults", *arguments.batching]
    times: dict[str, list[Times]] = {side: [] for side in sides}
    losses: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        request = DataRequest(
            train=(DataFile(arguments.conversations, "chat", 1.0),),
            eval=0.1,
            layout="auto",
            columns={},
            overlength="drop",
            max_length=4096,
            max_eval_rows=50,
            seed=0,
        )
        data = prepare(request, ChatRenderer(tokenizer, None), folder)
        rows = data.train.select_columns(["input_ids", "labels"])
        for repeat in range(arguments.repeats):
            for side in sides:
                model = adapted_model(tokenizer).to(device)
                scratch = folder / f"{side}-{repeat}".replace(" ", "-")
                scratch.mkdir()
                took, loss = (
                    trl(model, tokenizer, rows, arguments, scratch)
                    if side == "TRL defaults"
                    else ours(model, tokenizer, rows, side, arguments, scratch)
                )
                times[side].append(took)
                losses[side] = loss, held_out_loss(model, data.validation)
    tokens = data.report.train
    drawn = min(1.0, arguments.steps * arguments.batch / len(rows))
    lengths = data.report.train.length_quantiles
    print(
        f"{arguments.conversations.parent.name}: {len(rows)} rows of {lengths['min']} to {lengths['max']} tokens (median {lengths['p50']}), "
        f"{100 * tokens.loss_tokens / tokens.tokens:.0f} % carry loss; {arguments.steps} steps of {arguments.batch} rows, {device}, {torch.get_num_threads()} threads\n"
    )
    print("| | s | processor s | loss tokens per processor s | against TRL | last mean loss | held-out loss |")
    print("|---|---|---|---|---|---|---|")
    reference = statistics.median(spent for _, spent in times["TRL defaults"])
    for side in sides:
        clock, spent = (statistics.median(column) for column in zip(*times[side], strict=True))
        rate = tokens.loss_tokens * drawn / spent
        print(
            f"| {side} | {clock:.1f} | {spent:.1f} | {rate:,.0f} | {reference / spent:.2f} | {losses[side][0]:.5f} | {losses[side][1]:.5f} |"
        )


if __name__ == "__main__":
    main()
