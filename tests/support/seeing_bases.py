"""Tiny random bases that read pictures, one for each family whose processor loads here, and rows for them."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    Gemma3Processor,
    GenerationConfig,
    Idefics3Processor,
    LlavaProcessor,
)
from transformers.models.clip import CLIPImageProcessor
from transformers.models.gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3 import Idefics3ImageProcessorPil

from mlflow_finetune_plugin.base_models.files import EMBEDDED_VISION_FOLDER
from mlflow_finetune_plugin.images import Picture

_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 4,
}
_TEMPLATE = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ 'PLACE' }}{%- else -%}{{ part['text'] }}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{ '<|im_end|>\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


def seeing_base(folder: Path, family: str) -> Path:
    """Write a tiny base of this family with random weights."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_VISION_FOLDER)
    config, processor, placeholder = _FAMILIES[family](tokenizer)
    tokenizer.chat_template = _TEMPLATE.replace("PLACE", placeholder)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("mm_input_projection_weight"):  # starts at zero, where pictures would change nothing
            torch.nn.init.normal_(parameter, std=0.5)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _llava(tokenizer: Any) -> tuple[Any, Any, str]:
    images = CLIPImageProcessor(size={"height": 16, "width": 16}, crop_size={"height": 16, "width": 16})
    processor = LlavaProcessor(images, tokenizer, patch_size=4, vision_feature_select_strategy="full")
    config = AutoConfig.for_model(
        "llava",
        text_config={"model_type": "llama", **_TEXT, "vocab_size": len(tokenizer)},
        vision_config={"model_type": "siglip_vision_model", **_VISION, "image_size": 16},
        image_token_index=processor.image_token_id,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    return config, processor, "<image>"


def _gemma3(tokenizer: Any) -> tuple[Any, Any, str]:
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    named = AutoTokenizer.from_pretrained(EMBEDDED_VISION_FOLDER, extra_special_tokens=names)
    tokenizer.__dict__.update(named.__dict__)
    images = Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    processor = Gemma3Processor(images, tokenizer, image_seq_length=4)
    config = AutoConfig.for_model(
        "gemma3",
        text_config={"model_type": "gemma3_text", **_TEXT, "vocab_size": len(tokenizer), "query_pre_attn_scalar": 16},
        vision_config={"model_type": "siglip_vision_model", **_VISION, "image_size": 16},
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
        tie_word_embeddings=False,
    )
    return config, processor, "<start_of_image>"


def _idefics3(tokenizer: Any) -> tuple[Any, Any, str]:
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]}
    )
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 16}, max_image_size={"longest_edge": 16}, do_image_splitting=False
    )
    processor = Idefics3Processor(images, tokenizer, image_seq_len=4)
    config = AutoConfig.for_model(
        "idefics3",
        text_config={"model_type": "llama", **_TEXT, "vocab_size": len(tokenizer)},
        vision_config={**_VISION, "image_size": 16},
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    return config, processor, "<image>"


_FAMILIES: dict[str, Callable[[Any], tuple[Any, Any, str]]] = {
    "llava": _llava,
    "gemma3": _gemma3,
    "idefics3": _idefics3,
}
SEEING_FAMILIES = tuple(_FAMILIES)


def drawn(seed: int, side: int = 16) -> Picture:
    """Return a picture of random colours."""
    rng = random.Random(seed)
    image = Image.new("RGB", (side, side))
    image.putdata([tuple(rng.randrange(256) for _ in range(3)) for _ in range(side * side)])
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return Picture.of(stream.getvalue())
