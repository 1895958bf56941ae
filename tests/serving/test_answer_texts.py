"""Chats get the text that pyfunc gives, whatever blank or prefix the model writes before it, on both engines."""

from __future__ import annotations

import json

import httpx
import pytest
from served_models import VersionMaker
from serving_process import ask, serving
from tiny_bases import tiny_base

from mlflow_finetune_plugin.evaluation.answer_text import answer_text

pytestmark = pytest.mark.process

QUESTIONS = [f"question {number}" for number in range(40)]
PREFIXING = (
    "{%- for m in messages -%}{{ m['role'] + ':' }}{%- if m['role'] == 'assistant' -%}{{ ' ' }}{%- endif -%}"
    "{{ m['content'] + eos_token }}{%- endfor -%}{%- if add_generation_prompt -%}{{ 'assistant:' }}{%- endif -%}"
)


def check_answers(folder, registry, family, engine, **sizes):
    """Compare a service with pyfunc on 40 prompts, some of whose answers begin or end with a blank. Returns the certificate's tag."""
    import mlflow

    base = tiny_base(folder / "base", family, chat_template=PREFIXING, **sizes)
    maker = VersionMaker(registry.uri, base, str(base))
    name = f"blank-{family}"
    number = maker.make(
        name, seed=1, **({"serving": "transformers", "target_modules": ["c_attn"]} if family == "gpt2" else {})
    )
    maker.client.set_registered_model_alias(name, "champion", number)
    loaded = mlflow.pyfunc.load_model(f"models:/{name}/{number}")
    expected = list(loaded.predict(QUESTIONS, params={"max_new_tokens": 8}))
    with serving(folder, registry.uri, name, "--engine", engine) as service:
        answers = [ask(service, name, question=question) for question in QUESTIONS]
        prompts = [f"user:{question}</s>assistant:" for question in QUESTIONS]
        body = {"model": name, "prompt": prompts, "max_tokens": 8, "temperature": 0}
        completions = [
            httpx.post(f"{service.url}/v1/completions", json={**body, "prompt": p}, timeout=60) for p in prompts
        ]
        streamed = [text_of(ask(service, name, question=question, stream=True)) for question in QUESTIONS]
    written = [completion.json()["choices"][0]["text"] for completion in completions]
    texts = [answer.json()["choices"][0]["message"]["content"] for answer in answers]
    assert [answer_text(text, "") for text in written] == expected
    assert any(text != text.strip() for text in written), "without a blank there is nothing to see"
    assert (texts, streamed) == (expected, expected)
    tags = maker.client.get_model_version(name, number).tags
    return tags[f"finetune.certificate.{engine}.float32"]


def text_of(stream):
    events = [line.removeprefix("data: ") for line in stream.text.splitlines() if line.startswith("data: {")]
    deltas = [choice["delta"] for event in events for choice in json.loads(event)["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


def test_answers_of_gpt2_have_no_blank_that_pyfunc_removes(tmp_path, registry):
    assert check_answers(tmp_path, registry, "gpt2", "transformers").startswith("passed (transformers, ")


@pytest.mark.vllm
def test_answers_of_vllm_have_no_blank_that_pyfunc_removes(tmp_path, registry):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    sizes = {"hidden_size": 128, "head_dim": 32}
    assert check_answers(tmp_path, registry, "llama", "vllm", **sizes).startswith("passed (vllm, ")
