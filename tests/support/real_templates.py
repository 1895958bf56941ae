"""The chat templates of real models, as TRL ships them, and conversations that use what they offer."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

_OF_FAMILY = {
    "llama": ("llama3_2", "<|eot_id|>"),
    "qwen2": ("qwen2_5", "<|im_end|>"),
    "qwen3": ("qwen3", "<|im_end|>"),
    "qwen3_moe": ("qwen3_instruct_2507", "<|im_end|>"),
    "gemma2": ("gemma", "<end_of_turn>"),
    "gemma3_text": ("gemma3", "<end_of_turn>"),
    "phi3": ("phi3", "<|end|>"),
    "glm4_moe": ("glm4moe", "<|endoftext|>"),
    "gpt_oss": ("gptoss", "<|return|>"),
}
"""Each family's template in TRL's folder, and the token that its models end an answer with."""
_CONTROL_TOKEN = re.compile(r"<[|｜]?[A-Za-z/][^<>\s'\"{}=]{0,40}>|<\|?turn\|?>")

_NOUNS = {"parcel": "delivery", "contract": "cancellation", "kettle": "returns", "bill": "payment"}
LABEL_TOOL = {
    "type": "function",
    "function": {
        "name": "file_under",
        "description": "File a message",
        "parameters": {"type": "object", "properties": {"label": {"type": "string"}}, "required": ["label"]},
    },
}


def template_folder() -> Path:
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "chat_templates"


def template_text(name: str) -> str:
    return (template_folder() / f"{name}.jinja").read_text(encoding="utf-8")


def control_tokens() -> list[str]:
    """Everything that looks like a control token in the chat templates that TRL ships."""
    texts = (path.read_text(encoding="utf-8") for path in template_folder().glob("*.jinja"))
    return sorted({token for text in texts for token in _CONTROL_TOKEN.findall(text)} | {"<|endoftext|>"})


def family_template(family: str) -> tuple[str, str] | None:
    """The chat template of a family's models and the token that ends an answer; None where TRL ships none."""
    if family not in _OF_FAMILY:
        return None
    name, end = _OF_FAMILY[family]
    return template_text(name), end


def takes_tools(template: str) -> bool:
    return "tools" in template


def takes_reasoning(template: str) -> bool:
    return "reasoning_content" in template or "thinking" in template


def write_conversations(folder: Path, template: str, rows: int = 24) -> tuple[Path, Path]:
    """Train and held-out files: plain answers, and where the template has them answers with reasoning, calls and their results."""
    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = folder / "train.jsonl", folder / "test.jsonl"
    train.write_text("".join(_line(i, template) for i in range(rows)), encoding="utf-8")
    held_out.write_text("".join(_line(i, template) for i in range(100, 112)), encoding="utf-8")
    return train, held_out


def _line(number: int, template: str) -> str:
    noun, label = list(_NOUNS.items())[number % len(_NOUNS)]
    question = {"role": "user", "content": f"a word about my {noun}, number {number}"}
    answer = {"role": "assistant", "content": label}
    kind = number // len(_NOUNS) % 3
    row: dict[str, object] = {"messages": [question, answer]}
    if kind == 1 and takes_reasoning(template):
        row = {"messages": [question, {**answer, "reasoning_content": f"a {noun} is about {label}"}]}
    if kind == 2 and takes_tools(template):
        call = {"type": "function", "id": "call1", "function": {"name": "file_under", "arguments": {"label": label}}}
        called = {"role": "assistant", "content": "", "tool_calls": [call]}
        result = {"role": "tool", "tool_call_id": "call1", "content": "filed"}
        row = {"messages": [question, called, result, answer], "tools": [LABEL_TOOL]}
    return json.dumps(row) + "\n"
