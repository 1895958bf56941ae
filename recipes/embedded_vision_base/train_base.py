"""Train the embedded base that sees: a vision tower from scratch, joined to the embedded base, on drawn pictures only.

    python recipes/embedded_vision_base/train_base.py --seed 0

The steps are: the tower alone learns to tell shapes, letters, colours and places apart; then a projector and the language model learn
to answer questions about shapes, mixed with the embedded base's own chats. Letters and digits are never named to the language model.
Everything runs on the CPU and depends on the seed only.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import logging
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
from pictures import COLOURS, DIGITS, LETTERS, PARTS, SHAPES, SIZE, Drawing, draw, question
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

ROOT = Path(__file__).resolve().parents[2]
TEXT_BASE = ROOT / "mlflow_finetune_plugin" / "embedded_base"
sys.path.append(str(ROOT / "recipes" / "embedded_base"))
from families import question as text_question  # noqa: E402

logger = logging.getLogger("train_base")

PATCH = 4
IMAGE_TOKENS = (SIZE // PATCH) ** 2
IMAGE = "<image>"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ '<image>' }}{%- elif part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{{ '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
KINDS = SHAPES + LETTERS
MEAN, STD = 0.5, 0.25


def main() -> None:
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    started = time.process_time()
    tower = train_tower(random.Random(args.seed), args.tower_steps)
    logger.info("tower after %.0f CPU s", time.process_time() - started)
    model, processor = joined(tower)
    train_answers(model, processor, random.Random(args.seed + 1), args.steps)
    logger.info("answers after %.0f CPU s", time.process_time() - started)
    figures = scores(model, processor)
    write(model, processor, args.out)
    minutes = (time.process_time() - started) / 60
    card = model_card(figures, minutes, model.num_parameters(), args)
    (args.out / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    print(f"{minutes:.1f} CPU minutes, {figures}, written to {args.out}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tower-steps", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "mlflow_finetune_plugin" / "embedded_vision_base")
    return parser.parse_args()


# ---- the tower


def pixels(drawings: list[Drawing]) -> torch.Tensor:
    """Return pictures as the processor gives them to the model: (pictures, 3, SIZE, SIZE)."""
    arrays = np.stack([np.asarray(drawing.picture) for drawing in drawings])
    return (torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


def train_tower(rng: random.Random, steps: int) -> CLIPVisionModel:
    """Train the tower with a linear layer for kinds, colours and places, on the mean of its patches and on their maximum."""
    tower = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=96,
            intermediate_size=192,
            num_hidden_layers=3,
            num_attention_heads=3,
            image_size=SIZE,
            patch_size=PATCH,
        )
    )
    sizes = (len(KINDS), len(COLOURS), len(PARTS))
    head = torch.nn.Linear(2 * 96, sum(sizes))
    weights = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        drawings = [draw(rng, SHAPES if rng.random() < 0.4 else LETTERS) for _ in range(64)]
        targets = torch.tensor(
            [[KINDS.index(d.kind), list(COLOURS).index(d.colour), PARTS.index(d.part)] for d in drawings]
        )
        states = tower(pixel_values=pixels(drawings)).last_hidden_state[:, 1:]  # (batch, patches, 96)
        logits = head(torch.cat([states.mean(1), states.amax(1)], -1)).split(sizes, -1)
        loss = sum(functional.cross_entropy(part, targets[:, i]) for i, part in enumerate(logits))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps - 1:
            right = [(part.argmax(-1) == targets[:, i]).float().mean().item() for i, part in enumerate(logits)]
            logger.info("tower step %d loss %.3f kind %.2f colour %.2f place %.2f", step, loss.item(), *right)
    return tower


# ---- the language model that sees


def joined(tower: CLIPVisionModel) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Return the tower, a new projector and the embedded base as one model, with its processor."""
    tokenizer = AutoTokenizer.from_pretrained(TEXT_BASE)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", IMAGE]})
    text = AutoModelForCausalLM.from_pretrained(TEXT_BASE, dtype=torch.float32)
    text.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=text.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.tie_weights()
    sizes = {"height": SIZE, "width": SIZE}
    images = CLIPImageProcessorPil(size=sizes, crop_size=sizes, image_mean=[MEAN] * 3, image_std=[STD] * 3)
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return model, processor


def chat(ask: str, answer: str | None, *, sees: bool) -> str:
    picture = IMAGE * IMAGE_TOKENS if sees else ""
    start = f"<|im_start|>user\n{picture}{ask}<|im_end|>\n<|im_start|>assistant\n"
    return start if answer is None else f"{start}{answer}<|im_end|>\n"


def train_answers(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, rng: random.Random, steps: int
) -> None:
    """Train projector and language model on answers; half of the rows are the embedded base's own chats, without a picture."""
    model.model.vision_tower.requires_grad_(requires_grad=False)
    projector = list(model.model.multi_modal_projector.parameters())
    language = list(model.model.language_model.parameters())
    groups = [{"params": projector, "lr": 3e-3}, {"params": language, "lr": 1e-3}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
    rates = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps, pct_start=0.1)
    tokenizer = processor.tokenizer
    model.train()
    for step in range(steps):
        drawn = [question(rng) for _ in range(24)]
        texts = [(chat(ask, None, sees=True), chat(ask, answer, sees=True)) for _, ask, answer in drawn]
        spoken = list(itertools.islice((text_question(rng) for _ in itertools.count()), 12))
        texts += [(chat(ask, None, sees=False), chat(ask, answer, sees=False)) for ask, answer in spoken]
        inputs, labels = rows(tokenizer, texts)
        loss = model(**inputs, pixel_values=pixels([drawing for drawing, _, _ in drawn]), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*projector, *language], 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            logger.info("answers step %d loss %.3f", step, loss.item())


def rows(
    tokenizer: PreTrainedTokenizerFast, texts: list[tuple[str, str]]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return padded ids and mask, and labels that leave out prompts: each (rows, tokens)."""
    ids = [tokenizer(whole, add_special_tokens=False)["input_ids"][:200] for _, whole in texts]
    starts = [len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) for prompt, _ in texts]
    width = max(map(len, ids))
    padded = torch.full((len(ids), width), tokenizer.pad_token_id)
    labels = torch.full((len(ids), width), -100)
    for i, row in enumerate(ids):
        padded[i, : len(row)] = torch.tensor(row)
        labels[i, starts[i] : len(row) - 1] = torch.tensor(row[starts[i] : -1])  # without the line break behind the end
    return {
        "input_ids": padded,
        "attention_mask": (torch.arange(width) < torch.tensor([[len(r)] for r in ids])).long(),
    }, labels


# ---- measuring and writing


@torch.inference_mode()
def scores(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> dict[str, float]:
    """Return exact matches on new pictures by question, on the embedded base's chats, and of digits, which nobody named."""
    model.eval()
    rng = random.Random(1_000_003)
    by_question: dict[str, list[bool]] = {}
    questions = [question(rng) for _ in range(400)]
    for (_, ask, right), text in zip(
        questions, answers(model, processor, [(d, ask) for d, ask, _ in questions]), strict=True
    ):
        by_question.setdefault(ask, []).append(text == right)
    digits = [draw(rng, DIGITS) for _ in range(100)]
    spoken = answers(model, processor, [(d, "Which number is it?") for d in digits])
    result = {ask: sum(right) / len(right) for ask, right in sorted(by_question.items())}
    result["digits"] = sum(text == d.kind for text, d in zip(spoken, digits, strict=True)) / len(digits)
    texts = [text_question(rng) for _ in range(200)]
    spoken = answers(model, processor, [(None, ask) for ask, _ in texts])
    result["text chats"] = sum(a == right for a, (_, right) in zip(spoken, texts, strict=True)) / len(texts)
    return {name: round(value, 3) for name, value in result.items()}


def answers(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, questions: list[tuple[Drawing | None, str]]
) -> list[str]:
    tokenizer, spoken = processor.tokenizer, []
    for start in range(0, len(questions), 50):
        part = questions[start : start + 50]
        prompts = [chat(ask, None, sees=drawing is not None) for drawing, ask in part]
        batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        drawings = [drawing for drawing, _ in part if drawing is not None]
        more = {"pixel_values": pixels(drawings)} if drawings else {}
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], **more}
        out = model.generate(
            **inputs, max_new_tokens=40, do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=0
        )
        spoken += tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in spoken]


def write(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = processor.tokenizer
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    model.generation_config = GenerationConfig(eos_token_id=[eos, pad], pad_token_id=pad, do_sample=False)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"].pop("_name_or_path", None)  # the folder on this machine
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    processor.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    # transformers 5 writes the class name TokenizersBackend, which its own earlier versions do not know
    text_settings = json.loads((TEXT_BASE / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings = text_settings | {"extra_special_tokens": ["<|im_start|>", IMAGE], "processor_class": "LlavaProcessor"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def model_card(figures: dict[str, float], minutes: float, parameters: int, args: argparse.Namespace) -> str:
    template = (Path(__file__).parent / "card_template.md").read_text(encoding="utf-8")
    return template.format(
        table="\n".join(f"| {name} | {value:.2f} |" for name, value in figures.items()),
        minutes=f"{minutes:.0f}",
        parameters=f"{parameters:,}",
        seed=args.seed,
        tower_steps=args.tower_steps,
        steps=args.steps,
        cores=os.cpu_count(),
        date=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    )


if __name__ == "__main__":
    main()
