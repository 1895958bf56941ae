"""Versions that were trained with the templates of real models answer plain, thinking and tool-calling chats as pyfunc does."""

from __future__ import annotations

import httpx
import mlflow
import pytest
from pipeline_runs import config_for, run_pipeline
from real_templates import LABEL_TOOL, family_template, takes_reasoning, takes_tools, write_conversations
from serving_process import CHAT, serving
from tiny_bases import tiny_base

pytestmark = [pytest.mark.process, pytest.mark.train]

FAMILIES = ("llama", "glm4_moe", "gpt_oss")
QUESTION = [{"role": "user", "content": "a word about my kettle, number 104"}]
FILED = [
    *QUESTION,
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "type": "function",
                "id": "call1",
                "function": {"name": LABEL_TOOL["function"]["name"], "arguments": {"label": "returns"}},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call1", "content": "filed"},
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, empty_store):
    """The address of a store with a version of each family, named like it."""
    folder = tmp_path_factory.mktemp("templates")
    store = None
    for family in FAMILIES:
        template, turn_end = family_template(family)
        sizes = {"max_position_embeddings": 2048, "chat_template": template, "turn_end": turn_end}
        base = tiny_base(folder / family / "base", family, **sizes)
        train, held_out = write_conversations(folder / family / "rows", template, rows=12)
        data = {"train": [{"path": str(train)}], "eval": [{"path": str(held_out)}]}
        config = config_for(folder / family, base, data=data, register={"name": family})
        ran = run_pipeline(folder / family / "run", empty_store, config, store=store)
        store = store or ran.folder / "mlflow.db"
    return ran.tracking_uri


def chats(family):
    """The chats that a family's template can write, with what goes beside their turns."""
    template, _ = family_template(family)
    fields = [{"messages": QUESTION}]
    if takes_tools(template):
        fields += [{"messages": QUESTION, "tools": [LABEL_TOOL]}, {"messages": FILED, "tools": [LABEL_TOOL]}]
    if takes_reasoning(template) and "enable_thinking" in template:
        fields += [
            {"messages": QUESTION, "chat_template_kwargs": {"enable_thinking": is_on}} for is_on in (True, False)
        ]
    return fields


def test_each_kind_of_chat_is_answered_as_pyfunc_answers_it(tmp_path, trained):
    mlflow.set_tracking_uri(trained)
    loaded = {family: mlflow.pyfunc.load_model(f"models:/{family}/1") for family in FAMILIES}
    expected = {
        family: [str(loaded[family].predict([chat], params={"max_new_tokens": 6})[0]) for chat in chats(family)]
        for family in FAMILIES
    }
    with serving(
        tmp_path, trained, *FAMILIES, "--engine", "transformers", "--max-engines", str(len(FAMILIES))
    ) as service:
        answers = {
            family: [answer_of(service, {**chat, "model": f"{family}/1"}) for chat in chats(family)]
            for family in FAMILIES
        }
    assert answers == expected
    assert len({text for texts in expected.values() for text in texts}) > len(FAMILIES)


def answer_of(service, chat):
    body = {**chat, "max_tokens": 6, "temperature": 0, **({"tool_choice": "none"} if "tools" in chat else {})}
    answer = httpx.post(service.url + CHAT, json=body, timeout=240)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]
