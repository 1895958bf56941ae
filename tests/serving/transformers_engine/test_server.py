"""Models, refusals, faults and endings over HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from engine_process import EMBEDDED, EngineProcess, engine, start, write_config
from peft import PeftModel
from tiny_adapters import KINDS, load_adapter, load_model, save_adapter
from transformers import AutoTokenizer

from mlflow_finetune_plugin.base_models.loading import BaseModel, load_base_model
from mlflow_finetune_plugin.evaluation.generation import completion_log_probs, greedy_answers

ENDLESS = {"prompt": "Once upon a time", "max_tokens": 500, "ignore_eos": True, "temperature": 0}


def error(reply: Any, status: int) -> dict[str, Any]:
    assert reply.status == status, reply.text
    found = reply.json["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


@pytest.mark.process
def test_models_are_the_base_and_its_adapters(running: EngineProcess, models: Any) -> None:
    listed = running.ask("GET", "/v1/models").json
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["base", *KINDS]
    assert [model["parent"] for model in listed["data"]] == [None, *["base"] * len(KINDS)]
    assert listed["data"][1]["root"] == str(models.adapters["lora"])
    assert listed["data"][0]["max_model_len"] == 512
    assert listed["data"][-1]["max_model_len"] == 507  # five virtual tokens


@pytest.mark.process
def test_what_no_answer_needs_is_not_loaded(running: EngineProcess) -> None:
    mapped = {part for file in psutil.Process(running.process.pid).memory_maps() for part in Path(file.path).parts}
    assert "torch" in mapped
    assert not {"scipy", "sklearn", "pandas", "bitsandbytes", "mlflow"} & mapped


@pytest.mark.process
def test_nobody_without_the_key_reaches_a_v1_route(running: EngineProcess) -> None:
    for method, path in [("GET", "/v1/models"), ("POST", "/v1/completions"), ("POST", "/v1/load_lora_adapter")]:
        for key in (None, "wrong", "test-key2"):
            assert error(running.ask(method, path, {}, key=key), 401)["code"] == "invalid_api_key"
    assert running.ask("GET", "/health", key=None).status == 200


@pytest.mark.bad_input
@pytest.mark.process
@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"temprature": 1}, "temprature: no such field"),
        ({"response_format": {"type": "json_object"}}, "response_format: not supported by the Transformers engine"),
        ({"functions": []}, "functions: not supported"),
        ({"logit_bias": {"1": 2}}, "logit_bias: not supported"),
        ({"temperature": -1}, "temperature:"),
        ({"top_p": 0}, "top_p:"),
        ({"max_tokens": 0}, "max_tokens:"),
        ({"n": 0}, "n:"),
        ({"stop": [""]}, "stop: an empty text"),
        ({"stream_options": {"include_usage": True}}, "stream_options: only with stream=true"),
        ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs: not with stream=true"),
        ({"echo": True}, "echo:"),
        ({"prompt": ""}, "prompt: empty"),
        ({"prompt": []}, "prompt: empty"),
        ({"prompt": [[1], []]}, "prompt: empty"),
        ({"prompt": [1, 5000]}, "prompt: token id 5000 is beyond the vocabulary of 1024"),
        ({"prompt": [-1]}, "prompt:"),
        ({"prompt": [7] * 512}, "prompt: 512 tokens leave no room"),
        ({"prompt": [7] * 500, "max_tokens": 13}, "max_tokens = 13: the prompt leaves room for 12"),
    ],
)
def test_what_is_not_served_is_refused_by_name(running: EngineProcess, body: dict[str, Any], named: str) -> None:
    found = error(running.post("/v1/completions", **{"model": "base", "prompt": "a", **body}), 400)
    assert found["message"].startswith(named)


@pytest.mark.bad_input
@pytest.mark.process
def test_refusals_of_chats_and_of_what_is_no_request(running: EngineProcess) -> None:
    chat = {"model": "base", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    assert (
        "top_logprobs: only with" in error(running.post("/v1/chat/completions", **chat, top_logprobs=2), 400)["message"]
    )
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    assert "image_url" in error(running.post("/v1/chat/completions", **chat | {"messages": picture}), 400)["message"]
    assert error(running.post("/v1/chat/completions", **chat | {"messages": []}), 400)["param"] == "messages"
    assert running.post("/v1/chat/completions", **chat, tools=None, user="me").status == 200  # clients send nulls
    unknown = error(running.post("/v1/chat/completions", **chat | {"model": "bse"}), 404)
    assert unknown["code"] == "model_not_found"
    assert "base" in unknown["message"]
    assert error(running.ask("POST", "/v1/completions", "text"), 400)
    assert error(running.ask("GET", "/v1/nothing"), 404)
    assert error(running.ask("GET", "/v1/completions"), 405)


@pytest.mark.process
def test_tools_and_template_settings_go_to_the_chat_template(tmp_path: Path) -> None:
    template = (
        "{{ mood | default('calm') }}{{ tools | tojson if tools else '' }}{% for m in messages %}{{ m.role + ':' + m.content }}"
        "{% for call in m.tool_calls %}{{ call.function.arguments.box }}{% endfor %}{% endfor %}"
    )
    tool = {"type": "function", "function": {"name": "open"}}
    chat = [
        {"role": "user", "content": "a"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "open", "arguments": '{"box": 7}'}}],
        },
        {"role": "tool", "content": "b"},
    ]
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    with engine(tmp_path, chat_template=template) as running:

        def prompt(**fields: Any) -> str:
            body = {"model": "base", "messages": chat, "max_tokens": 1, "return_token_ids": True, **fields}
            reply = running.post("/v1/chat/completions", **body)
            assert reply.status == 200, reply.text
            return str(tokenizer.decode(reply.json["prompt_token_ids"]))

        assert prompt() == "calmuser:aassistant:7tool:b"
        settings = {"tools": [tool], "tool_choice": "none", "chat_template_kwargs": {"mood": "angry"}}
        assert prompt(**settings) == (
            'angry[{"type": "function", "function": {"name": "open", "description": null, "parameters": null}}]'
            "user:aassistant:7tool:b"
        )
        body = {"model": "base", "messages": chat, "max_tokens": 1}
        for reserved in ("chat_template", "tokenize"):
            refused = running.post("/v1/chat/completions", **body, chat_template_kwargs={reserved: "x"})
            assert f"'{reserved}' is not a setting of a chat template" in error(refused, 400)["message"]
        broken = [chat[0], {**chat[1], "tool_calls": [{"function": {"name": "open", "arguments": "{"}}]}]
        assert "not JSON" in error(running.post("/v1/chat/completions", **body | {"messages": broken}), 400)["message"]


@pytest.mark.process
def test_prompts_of_every_form_are_answered(running: EngineProcess, models: Any) -> None:
    ids = [models.tokenizer(text)["input_ids"] for text in ("Once upon", "A dog")]
    body = {"model": "base", "temperature": 0, "max_tokens": 5}

    def texts(prompt: Any) -> list[str]:
        return [choice["text"] for choice in running.post("/v1/completions", prompt=prompt, **body).json["choices"]]

    both = texts(["Once upon", "A dog"])
    assert len(both) == 2
    assert texts(ids) == both
    assert texts("Once upon") == texts(ids[0]) == both[:1]


@pytest.mark.bad_input
@pytest.mark.process
def test_adapters_that_cannot_be_loaded_are_refused(running: EngineProcess, models: Any, tmp_path: Path) -> None:
    def load(name: str, path: Path | str) -> Any:
        return running.post("/v1/load_lora_adapter", lora_name=name, lora_path=str(path))

    lora = models.adapters["lora"]
    assert "already loaded" in error(load("lora", lora), 400)["message"]
    assert "already loaded" in error(load("base", lora), 400)["message"]
    assert error(load("gone", tmp_path / "gone"), 404)["type"] == "NotFoundError"
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "adapter_config.json").write_text((lora / "adapter_config.json").read_text())
    assert "adapter_model.safetensors" in error(load("half", damaged), 404)["message"]
    (damaged / "adapter_model.safetensors").write_bytes(b"no weights")
    assert "PEFT cannot read this adapter" in error(load("damaged", damaged), 400)["message"]
    assert error(running.post("/v1/load_lora_adapter", lora_name="x"), 400)["param"] == "lora_path"
    assert error(running.post("/v1/unload_lora_adapter", lora_name="gone"), 404)["type"] == "NotFoundError"
    assert [model["id"] for model in running.ask("GET", "/v1/models").json["data"]] == ["base", *KINDS]


@pytest.mark.process
def test_an_unloaded_adapter_finishes_what_it_began(running: EngineProcess, tmp_path: Path) -> None:
    path = save_adapter("lora", EMBEDDED, tmp_path / "short-lived", seed=5)
    running.post("/v1/load_lora_adapter", lora_name="short-lived", lora_path=str(path))
    whole = running.post("/v1/completions", model="short-lived", **ENDLESS).json["choices"][0]["text"]
    stream = running.stream("/v1/completions", model="short-lived", **ENDLESS)
    events = iter(stream)
    text = next(events)["choices"][0]["text"]

    assert running.post("/v1/unload_lora_adapter", lora_name="short-lived").status == 200

    assert error(running.post("/v1/completions", model="short-lived", prompt="a"), 404)["code"] == "model_not_found"
    assert running.load() == 1  # it was still being generated
    assert text + "".join(event["choices"][0]["text"] for event in events) == whole
    again = running.post("/v1/load_lora_adapter", lora_name="short-lived", lora_path=str(path))
    assert again.status == 200  # the name is free
    running.post("/v1/unload_lora_adapter", lora_name="short-lived")


@pytest.mark.process
def test_answers_stay_the_same_while_adapters_come_and_go(running: EngineProcess, models: Any) -> None:
    body = {"model": "dora", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 40, "ignore_eos": True}
    expected = running.post("/v1/completions", **body).json["choices"][0]["text"]
    ended = threading.Event()

    def come_and_go() -> None:
        while not ended.is_set():
            for verb in ("load", "unload"):
                path = {"lora_path": str(models.adapters["lora"])} if verb == "load" else {}
                assert running.post(f"/v1/{verb}_lora_adapter", lora_name="guest", **path).status == 200

    with ThreadPoolExecutor(1) as pool:
        guest = pool.submit(come_and_go)
        answers = {running.post("/v1/completions", **body).json["choices"][0]["text"] for _ in range(15)}
        ended.set()
        guest.result()
    assert answers == {expected}


@pytest.mark.process
@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_client_that_leaves_ends_its_sequences(running: EngineProcess, is_streamed: bool) -> None:
    running.wait_for_load(0)
    body = {"model": "base", **ENDLESS, "prompt": ["a dog", "a cat"] * 20}  # 20,000 tokens: seconds of work
    if is_streamed:
        stream = running.stream("/v1/completions", **body)
        next(iter(stream))
        assert running.load() >= 30
        stream.leave()
    else:
        connection = running.send("/v1/completions", **body)
        running.wait_for_load(40)
        connection.close()
    running.wait_for_load(0, timeout_s=1)


@pytest.mark.process
def test_a_failing_request_gets_an_error_and_the_engine_lives_on(running: EngineProcess, tmp_path: Path) -> None:
    misfit = save_adapter("bottleneck", EMBEDDED, tmp_path / "misfit", hidden_size=64)  # loads, and fails in a step
    running.post("/v1/load_lora_adapter", lora_name="misfit", lora_path=str(misfit))
    body = {"model": "misfit", "prompt": "a", "max_tokens": 5}
    assert "the engine failed on this request" in error(running.post("/v1/completions", **body), 500)["message"]
    events = list(running.stream("/v1/completions", **body))
    assert [event["error"]["code"] for event in events] == [500]
    running.post("/v1/unload_lora_adapter", lora_name="misfit")
    assert running.ask("GET", "/health", key=None).status == 200
    assert running.post("/v1/completions", **body | {"model": "base"}).status == 200


@pytest.mark.process
def test_sigterm_lets_running_answers_end_on_a_real_model(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "models" / "stories260k-hd64"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    adapter = save_adapter("lora", folder, tmp_path / "lora", seed=1)
    ids = tokenizer("Once upon a time")["input_ids"]
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with engine(tmp_path, model=folder, chat_template=template, max_num_seqs=2) as running:
        running.post("/v1/load_lora_adapter", lora_name="lora", lora_path=str(adapter))
        for name, model in (("base", load_model(folder)), ("lora", load_adapter(folder, adapter))):
            (expected,) = greedy_answers(model, [ids], max_new_tokens=60, stop_token_ids=[1], pad_token_id=0)
            body = {"model": name, "prompt": ids, "temperature": 0, "max_tokens": 60}
            text = running.post("/v1/completions", **body).json["choices"][0]["text"]
            assert tokenizer.decode(ids + expected) == tokenizer.decode(ids) + text
        chat = running.post(
            "/v1/chat/completions",
            model="base", messages=[{"role": "user", "content": "Once"}], max_tokens=1, return_token_ids=True,
        ).json  # fmt: skip
        assert chat["prompt_token_ids"] == tokenizer("Once", add_special_tokens=False)["input_ids"]

        stream = running.stream("/v1/completions", model="lora", **ENDLESS, return_token_ids=True)
        events = iter(stream)
        next(events)
        running.terminate()
        running.wait_until_closed()
        rest = list(events)
        assert sum(len(event["choices"][0]["token_ids"]) for event in rest) == 499
        assert rest[-1]["choices"][0]["finish_reason"] == "length"
        assert running.process.wait(timeout=10) == 0


@pytest.mark.process
def test_a_quantized_base_is_served_as_it_was_trained_on(tmp_path: Path, models: Any) -> None:
    prompt, completion = (models.tokenizer(text)["input_ids"] for text in ("Once upon a time", " there was a dog."))
    trained_on = BaseModel(
        name="embedded", folder=EMBEDDED, revision=None, dtype=torch.float32, quantization="nf4",
        trust_remote_code=False,
    )  # fmt: skip
    model = PeftModel.from_pretrained(load_base_model(trained_on), str(models.adapters["lora"])).eval()
    (expected,) = completion_log_probs(model, [prompt], [completion], pad_token_id=0)
    with engine(tmp_path, quantization="nf4") as running:
        running.post("/v1/load_lora_adapter", lora_name="lora", lora_path=str(models.adapters["lora"]))
        body = {"model": "lora", "prompt": prompt + completion, "max_tokens": 1, "prompt_logprobs": 0}
        told = running.post("/v1/completions", **body).json["choices"][0]["prompt_logprobs"][len(prompt) :]
    found = [place[str(token)]["logprob"] for place, token in zip(told, completion, strict=True)]
    assert found == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.process
def test_a_start_that_cannot_succeed_says_why_at_once(running: EngineProcess, tmp_path: Path) -> None:
    def words(config: Path, **environment: str) -> str:
        log = tmp_path / "log"
        process = start(config, log, **environment)
        assert process.wait(timeout=20) == 1
        return log.read_text()

    taken = write_config(tmp_path, port=running.port)
    assert f"cannot listen on 127.0.0.1:{running.port}" in words(taken)
    assert "FINETUNE_ENGINE_KEY is empty" in words(write_config(tmp_path), FINETUNE_ENGINE_KEY="")
    assert "no such folder" in words(write_config(tmp_path, model=tmp_path / "gone"))
    assert "max_model_len = 513" in words(write_config(tmp_path, max_model_len=513))
    config = write_config(tmp_path)
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float8", "colour": 1}))
    told = words(config)
    assert "dtype:" in told
    assert "colour:" in told


@pytest.mark.process
def test_serving_alone_imports_nothing_heavy() -> None:
    code = (
        "import sys, mlflow_finetune_plugin.serving.transformers_engine.settings as _;"
        "sys.exit(bool({'torch', 'transformers', 'peft', 'starlette'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
