"""Base models of many architectures: two layers, random weights, saved as a user would have them on disk."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import torch
from real_templates import control_tokens
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

_TEXT = [
    "my parcel has not come, where is it?",
    "i want to end my contract in june",
    "can you exchange a kettle with a scratch?",
    "delivery cancellation returns payment",
    "the quick brown fox jumps over the lazy dog 0123456789",
]
_SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]

_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
_FAMILIES: dict[str, dict[str, object]] = {
    "llama": {},
    "mistral": {"sliding_window": 16},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"tie_word_embeddings": True, "sliding_window": 16, "query_pre_attn_scalar": 8},
    "gemma3_text": {"tie_word_embeddings": True, "sliding_window": 16, "query_pre_attn_scalar": 8},
    "phi3": {"tie_word_embeddings": False},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_neox": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 1},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "smollm3": {"no_rope_layers": [1, 0]},
    "glm4": {},
    "glm4_moe": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "first_k_dense_replace": 1,
    },
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
    "granite": {},
    "olmo2": {},
}
FAMILIES = tuple(_FAMILIES)

CHATML = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


def tiny_tokenizer(chat_template: str | None = CHATML, turn_end: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 300 tokens: every text can be written.

    ``turn_end`` is the end token of a real model's template, whose control tokens are tokens of this tokenizer then, too.
    """
    special = tuple(dict.fromkeys([*_SPECIAL, *(control_tokens() if turn_end else ())]))
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained_tokenizer(special)),
        bos_token="<s>",
        eos_token=turn_end or ("<|im_end|>" if chat_template and "im_end" in chat_template else "</s>"),
        pad_token="<pad>",
        chat_template=chat_template,
    )


@functools.cache
def _trained_tokenizer(special: tuple[str, ...]) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=293 + len(special), special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    return str(tokenizer.to_str())


_contents: dict[str, tuple[dict[str, bytes], torch.Tensor]] = {}
"""The files of each base that this process has made, and the random state after making it, by its arguments."""


def tiny_base(
    folder: Path, family: str = "llama", *, dtype: torch.dtype = torch.float32, shard: str = "50GB", **changes: object
) -> Path:
    """Saves a random model of this family with its tokenizer; ``changes`` override its config.

    ``chat_template`` and ``turn_end`` among them are the tokenizer's. A base with the same arguments is made once in a process,
    and its files are written again.
    """
    key = repr((family, dtype, shard, sorted(changes.items())))
    if key not in _contents:
        with tempfile.TemporaryDirectory() as made_in:
            _make(Path(made_in), family, dtype, shard, changes)
            files = {path.name: path.read_bytes() for path in Path(made_in).iterdir()}
        _contents[key] = files, torch.get_rng_state()
    files, random_state = _contents[key]
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    torch.set_rng_state(random_state)
    return folder


def _make(folder: Path, family: str, dtype: torch.dtype, shard: str, changes: dict[str, object]) -> None:
    template, turn_end = changes.pop("chat_template", CHATML), changes.pop("turn_end", None)
    tokenizer = tiny_tokenizer(template, turn_end)  # type: ignore[arg-type]
    arguments: dict[str, object] = {
        **(_SIZES if family != "gpt2" else {}),
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.2,  # wide enough that answers differ between prompts
        **_FAMILIES[family],
        **changes,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**arguments)).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)


def write_rows(folder: Path, rows: int = 24) -> tuple[Path, Path]:
    """Train and held-out files: the complaint's noun decides its label."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = {"parcel": "delivery", "contract": "cancellation", "kettle": "returns", "bill": "payment"}

    def line(i: int) -> str:
        noun, label = list(labels.items())[i % len(labels)]
        return json.dumps({"prompt": f"a word about my {noun}, number {i}", "completion": label})

    train, held_out = folder / "train.jsonl", folder / "test.jsonl"
    train.write_text("\n".join(line(i) for i in range(rows)) + "\n")
    held_out.write_text("\n".join(line(i) for i in range(100, 112)) + "\n")
    return train, held_out
