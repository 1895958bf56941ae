"""Tools and template settings on their way from the data through training and proof to the logged model."""

import json
from pathlib import Path

import mlflow
import pytest
from data_requests import jsonl
from pipeline_runs import config_for, run_pipeline
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
    base = tiny_base(folder / "base", "qwen3", chat_template=TEMPLATE, max_position_embeddings=512)
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
    assert probe["tools"] == [TOOL]
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
