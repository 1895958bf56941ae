"""Tools and template settings on their way from the data through training and proof to the logged model and a service."""

import json
from pathlib import Path

import httpx
import mlflow
import pytest
from data_requests import jsonl
from pipeline_runs import config_for, run_pipeline
from serving_process import CHAT, serving, wait_until
from tiny_bases import CHATML, tiny_base

TEMPLATE = (
    "{{ '<|im_start|>system\n' + mood }}{%- if tools %}{{ tools | tojson }}{%- endif %}{{ '<|im_end|>\n' }}"
    + CHATML.replace(
        "message['content'] + '<|im_end|>\\n'",
        "message['content'] + (message.tool_calls | tojson if message.tool_calls else '') + '<|im_end|>\\n'",
    )
)

TOOL = {"type": "function", "function": {"name": "open"}}


def _rows(first, count):
    return [
        {
            "messages": [
                {"role": "user", "content": f"box {i}?"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"function": {"name": "open", "arguments": json.dumps({"box": i})}}],
                },
            ],
            "tools": [TOOL],
            "room": f"room {first + i // 2}",
        }
        for i in range(first, first + count)
    ]


@pytest.fixture(scope="module")
def ran(tmp_path_factory, empty_store):
    folder = tmp_path_factory.mktemp("tools")
    base = tiny_base(folder / "base", "qwen3", chat_template=TEMPLATE, max_position_embeddings=512, head_dim=64)
    data = {
        "train": [{"path": str(jsonl(folder / "train.jsonl", _rows(0, 8)))}],
        "eval": [{"path": str(jsonl(folder / "eval.jsonl", _rows(100, 3)))}],
        "chat_template_kwargs": {"mood": "calm"},
        "group": "room",
    }
    return run_pipeline(folder / "run", empty_store, config_for(folder, base, data=data, training={"max_steps": 2}))


@pytest.mark.train
def test_every_record_of_a_held_out_row_has_its_tools(ran):
    (probe, *_) = json.loads((ran.work / "reference.json").read_text())["probes"]
    assert probe["tools"] == [
        {"type": "function", "function": {"name": "open", "description": None, "parameters": None}}
    ]
    assert probe["messages"] == [{"role": "user", "content": "box 100?"}]
    assert probe["prompt"].startswith('<|im_start|>system\ncalm[{"type": "function"')
    held_out = json.loads(ran.artifact("proof/held_out.json").read_text())["rows"][0]
    assert held_out["answer"]["tool_calls"][0]["function"] == {"name": "open", "arguments": {"box": 100}}
    assert json.loads(held_out["reference"])[0]["function"] == {"name": "open", "arguments": {"box": 100}}


@pytest.mark.train
def test_every_record_of_a_held_out_row_has_its_group(ran):
    rows = json.loads(ran.artifact("proof/rows.json").read_text())
    groups = [dict(zip(rows["columns"], row, strict=True))["group"] for row in rows["data"]]
    assert groups == ["room 150", "room 150", "room 151"]
    held_out = json.loads(ran.artifact("proof/held_out.json").read_text())["rows"]
    assert [row["group"] for row in held_out] == groups


@pytest.mark.train
def test_the_logged_model_renders_tools_and_settings_as_in_training(ran):
    folder = Path(mlflow.artifacts.download_artifacts(ran.result["model_uri"], tracking_uri=ran.tracking_uri))
    model = mlflow.pyfunc.load_model(str(folder))
    chat = {"messages": [{"role": "user", "content": "box 100?"}]}
    rows = json.loads(ran.artifact("proof/rows.json").read_text())
    proven = dict(zip(rows["columns"], rows["data"][0], strict=True))
    with_tools = {**chat, "tools": [TOOL]}
    angry = {**with_tools, "chat_template_kwargs": {"mood": "angry"}}
    answers = [str(answer) for answer in model.predict([with_tools, chat, angry])]
    assert answers[0] == proven["adapter_answer"]
    assert len(set(answers)) == 3
    assert json.loads((folder / "artifacts" / "finetune.json").read_text())["chat_template_kwargs"] == {"mood": "calm"}
    calling = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "open", "arguments": "{}"}}]}
    as_object = {**calling, "tool_calls": [{"function": {"name": "open", "arguments": {}}}]}
    later = [
        {"messages": [*chat["messages"], call, {"role": "tool", "content": "x"}], "tools": [TOOL]}
        for call in (calling, as_object)
    ]
    first, second = model.predict(later)
    assert first == second


@pytest.mark.train
@pytest.mark.process
@pytest.mark.parametrize("engine", ["transformers", pytest.param("vllm", marks=pytest.mark.vllm)])
def test_a_service_certifies_and_answers_prompts_with_tools_and_settings(ran, tmp_path, engine):
    model = mlflow.pyfunc.load_model(ran.result["model_uri"])
    chat = {"messages": [{"role": "user", "content": "box 100?"}], "tools": [TOOL]}
    with serving(tmp_path, ran.tracking_uri, "bot", "--engine", engine) as service:

        def ask(**fields):
            body = {"model": "bot/1", "temperature": 0, "max_tokens": 8, "tool_choice": "none", **chat, **fields}
            return httpx.post(service.url + CHAT, json=body, timeout=120)

        def answer(**fields):
            response = ask(**fields)
            assert response.status_code == 200, response.text
            return response.json()["choices"][0]["message"]["content"].strip()

        wait_until(lambda: ask().status_code != 503)
        for fields in (
            {},
            {"chat_template_kwargs": {"mood": "angry"}},
            {"tools": [{"type": "function", "function": {"name": "close", "strict": True}}]},
        ):
            assert answer(**fields) == model.predict([{**chat, **fields}], params={"max_new_tokens": 8})[0]
        assert answer() != answer(chat_template_kwargs={"mood": "angry"})
    tags = ran.client.get_model_version("bot", "1").tags
    assert tags[f"finetune.certificate.{engine}.float32"].startswith("passed (")
