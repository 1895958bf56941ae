"""Train the embedded base model from scratch, on generated text only, and write it into the package.

    python recipes/embedded_base/train_base.py --seed 0

The steps are: choose held-out prompts, train the tokenizer, train the model on packed examples, measure it, write it. Everything
runs on the CPU and depends on the seed only, so a second run with the same machine and versions gives the same weights.
"""

import argparse
import datetime
import functools
import itertools
import json
import logging
import math
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from families import FAMILIES, prose, question, story_request
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

logger = logging.getLogger("train_base")

ROOT = Path(__file__).resolve().parents[2]
END_OF_TEXT, TURN_START, TURN_END = SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SYSTEMS = [
    "You are a helpful assistant.",
    "Answer briefly.",
    "You are a friendly assistant. Give short answers.",
    "Be kind and clear.",
]
VOCAB_SIZE = 1024
LENGTH = 256  # tokens in a packed row
BATCH = 16  # rows in a step
WARMUP_STEPS = 100
PROMPT_WEIGHT = 0.15  # a small loss on the user's words teaches English; the loss on the answers teaches the task
HELD_OUT_SEED = 1_000_003
HELD_OUT_PER_FAMILY = 40
GENERAL_LINES = 400

Piece = tuple[str, float]  # text and the weight of its tokens in the loss


def main() -> None:
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    started = time.monotonic()
    held_out = held_out_questions()
    general = held_out_prose()
    unseen = {ask for rows in held_out.values() for ask, _ in rows} | set(general)
    tokenizer = train_tokenizer(random.Random(args.seed), unseen)
    model = LlamaForCausalLM(model_config())
    train(model, tokenizer, examples(random.Random(args.seed + 1), unseen), args.steps, args.learning_rate)
    minutes = (time.monotonic() - started) / 60
    fast = wrap(tokenizer)
    scores = {name: exact_match(model, fast, rows) for name, rows in held_out.items()}
    write(model, fast, args.out)
    (args.out / "MODEL_CARD.md").write_text(model_card(args, scores, minutes, model.num_parameters()), encoding="utf-8")
    args.general.write_text("\n".join(general) + "\n", encoding="utf-8", newline="\n")
    mean = sum(scores.values()) / len(scores)
    print(f"{minutes:.1f} minutes, mean exact match {mean:.3f} on held-out prompts, written to {args.out}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "mlflow_finetune_plugin" / "embedded_base")
    parser.add_argument("--general", type=Path, default=ROOT / "recipes" / "quickstart" / "data" / "general.txt")
    return parser.parse_args()


# ---- data


def held_out_questions() -> dict[str, list[tuple[str, str]]]:
    """Return distinct prompts of every family that training never sees in this spelling, the same for every seed."""
    rng = random.Random(HELD_OUT_SEED)
    held_out = {}
    for name in FAMILIES:
        rows: dict[str, str] = {}
        while len(rows) < HELD_OUT_PER_FAMILY:
            ask, answer = question(rng, name)
            rows[ask] = answer
        held_out[name] = list(rows.items())
    return held_out


def held_out_prose() -> list[str]:
    """Return lines of plain text that training never sees; the quickstart measures forgetting on them."""
    rng = random.Random(HELD_OUT_SEED + 1)
    lines: dict[str, None] = {}
    while len(lines) < GENERAL_LINES:
        lines[prose(rng)] = None
    return list(lines)


def examples(rng: random.Random, unseen: set[str]) -> Iterator[list[Piece]]:
    """Yield chats and plain texts as weighted pieces, without end."""
    while True:
        kind = rng.random()
        if kind < 0.14:
            text = prose(rng)
            if text not in unseen:
                yield [(text + END_OF_TEXT, 1.0)]
        elif kind < 0.22:
            yield chat([story_request(rng)], rng)
        else:
            turns = [question(rng) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
            yield chat([turn for turn in turns if turn[0] not in unseen] or [story_request(rng)], rng)


def chat(turns: list[tuple[str, str]], rng: random.Random) -> list[Piece]:
    """Write the chat template by hand, so that prompt and answer can have different weights."""
    pieces: list[Piece] = []
    if rng.random() < 0.15:
        pieces.append((f"{TURN_START}system\n{rng.choice(SYSTEMS)}{TURN_END}\n", 0.0))
    for ask, answer in turns:
        pieces.append((f"{TURN_START}user\n", 0.0))
        pieces.append((ask, PROMPT_WEIGHT))
        pieces.append((f"{TURN_END}\n{TURN_START}assistant\n", 0.0))
        pieces.append((f"{answer}{TURN_END}", 1.0))
        pieces.append(("\n", 0.0))
    return pieces


# ---- tokenizer


def train_tokenizer(rng: random.Random, unseen: set[str]) -> Tokenizer:
    """Train a byte-level BPE tokenizer. Each digit is a token, so that 17 and 170 start the same way."""
    tokenizer = Tokenizer(models.BPE())
    digits, byte_level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    sample = itertools.islice(examples(rng, unseen), 30_000)
    tokenizer.train_from_iterator((text for pieces in sample for text, _ in pieces), trainer)
    return tokenizer


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


# ---- model and training


def model_config() -> LlamaConfig:
    """Return the model's config: head size 64, which vLLM's kernels require, and 1.2M parameters, which fit in the package."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=SPECIALS.index(TURN_END),
        pad_token_id=SPECIALS.index(END_OF_TEXT),
        dtype="float32",
    )


def packed_batches(tokenizer: Tokenizer, stream: Iterator[list[Piece]]) -> Iterator[tuple[torch.Tensor, ...]]:
    """Pack whole examples into rows of LENGTH; yield ids, positions (from 0 in every example) and loss weights."""
    encode = functools.lru_cache(20_000)(lambda text: tokenizer.encode(text).ids)  # most pieces repeat
    rows: list[list[tuple[int, int, float]]] = [[]]
    pad = (SPECIALS.index(END_OF_TEXT), 0, 0.0)
    for pieces in stream:
        tokens = [(i, weight) for text, weight in pieces for i in encode(text)]
        example = [(i, position, weight) for position, (i, weight) in enumerate(tokens[:LENGTH])]
        if len(rows[-1]) + len(example) > LENGTH:
            rows[-1] += [pad] * (LENGTH - len(rows[-1]))
            if len(rows) == BATCH:
                columns = zip(*(zip(*row, strict=True) for row in rows), strict=True)
                ids, positions, weights = (torch.tensor(list(column)) for column in columns)
                yield ids, positions, weights  # each (BATCH, LENGTH)
                rows = []
            rows.append([])
        rows[-1] += example


def same_example_mask(positions: torch.Tensor) -> torch.Tensor:
    """Return a mask, (batch, 1, query, key), that is true where the key is earlier in the same example."""
    example = (positions == 0).cumsum(-1)
    same = example[:, None, :, None] == example[:, None, None, :]
    return same & torch.ones(positions.shape[-1], positions.shape[-1], dtype=torch.bool).tril()


def train(
    model: LlamaForCausalLM, tokenizer: Tokenizer, stream: Iterator[list[Piece]], steps: int, learning_rate: float
) -> None:
    """Train with weights in float32 and matrix products in bfloat16, which halves the time on CPUs that support it."""
    optimizers = two_optimizers(model, learning_rate)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: warmup_cosine(step, steps)) for o in optimizers]
    model.train()
    started = time.monotonic()
    for step, batch in enumerate(itertools.islice(packed_batches(tokenizer, stream), steps)):
        with torch.autocast("cpu", torch.bfloat16):
            loss = weighted_loss(model, *batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if step % 50 == 0:
            logger.info("step %d loss %.3f after %.0f s", step, loss.item(), time.monotonic() - started)


def two_optimizers(model: LlamaForCausalLM, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices and AdamW for the rest. After 100 steps: 2.60 nats, with AdamW alone 3.05."""
    named = list(model.named_parameters())
    matrices = [weight for name, weight in named if weight.ndim == 2 and "embed" not in name]
    rest = [weight for name, weight in named if weight.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=2 * learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def warmup_cosine(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARMUP_STEPS) * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)


def weighted_loss(
    model: LlamaForCausalLM, ids: torch.Tensor, positions: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Return the nats per unit of weight. The first token of an example is never a target."""
    mask = same_example_mask(positions)
    logits = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits  # (batch, length, vocab)
    weights = weights[:, 1:] * (positions[:, 1:] > 0)
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()


# ---- measuring and writing


@torch.inference_mode()
def exact_match(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[tuple[str, str]]) -> float:
    model.eval()
    chats = [[{"role": "user", "content": ask}] for ask, _ in rows]
    prompts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    out = model.generate(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=80, do_sample=False
    )
    answers = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return sum(answer.strip() == right for answer, (_, right) in zip(answers, rows, strict=True)) / len(rows)


def write(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    model.generation_config = GenerationConfig(eos_token_id=[eos, pad], pad_token_id=pad, do_sample=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # transformers 5 writes the class name TokenizersBackend, which its own earlier versions do not know
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def model_card(args: argparse.Namespace, scores: dict[str, float], minutes: float, parameters: int) -> str:
    table = "\n".join(f"| {name.replace('_', ' ')} | {score:.2f} |" for name, score in scores.items())
    template = (Path(__file__).parent / "card_template.md").read_text(encoding="utf-8")
    return template.format(
        table=table,
        mean=f"{sum(scores.values()) / len(scores):.2f}",
        minutes=f"{minutes:.0f}",
        parameters=f"{parameters:,}",
        held_out=HELD_OUT_PER_FAMILY,
        tokens=f"{args.steps * BATCH * LENGTH / 1e6:.1f}",
        steps=args.steps,
        seed=args.seed,
        cores=os.cpu_count(),
        date=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    )


if __name__ == "__main__":
    main()
