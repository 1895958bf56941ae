import json

import pytest

from mlflow_finetune_plugin.data.conversations.conversion import to_conversation, to_conversations
from mlflow_finetune_plugin.data.conversations.layouts import Layout, detect_layout
from mlflow_finetune_plugin.data.conversations.row_faults import RowFault

USER, ASSISTANT, SYSTEM = ({"role": role, "content": role[0]} for role in ("user", "assistant", "system"))


def text_turns(layout, row):
    return [(message["role"], message["content"]) for message in to_conversation(layout, row).messages]


def reason(row, layout=None):
    with pytest.raises(RowFault) as caught:
        to_conversation(layout or Layout("messages", {"messages": "messages"}), row)
    return caught.value.reason


PAIR = Layout("prompt_completion", {"prompt": "prompt", "completion": "completion"})
LABEL = Layout("label", {"text": "text", "label": "label"})
ALPACA = Layout("alpaca", {"history": "history", "instruction": "instruction", "output": "output"})


def test_texts_are_taken_verbatim():
    assert text_turns(PAIR, {"prompt": " p\n", "completion": " c "}) == [("user", " p\n"), ("assistant", " c ")]


@pytest.mark.parametrize(
    ("label", "text"), [("x", "x"), (3, "3"), (0, "0"), (True, "true"), (False, "false"), (2.0, "2"), ("007", "007")]
)
def test_labels_become_text(label, text):
    assert text_turns(LABEL, {"text": "t", "label": label})[1] == ("assistant", text)


@pytest.mark.parametrize(
    ("answer", "text"),
    [(7, "7"), (0, "0"), (True, "true"), (2.0, "2"), (0.35, "0.35"), ({"größe": [1, None]}, '{"größe": [1, null]}')],
)
def test_answers_that_are_no_text_become_text_and_are_counted(answer, text):
    for layout, part in ((PAIR, "completion"), (ALPACA, "output")):
        row = {"prompt": "p", "instruction": "i", part: answer}
        conversation = to_conversation(layout, row)
        assert (conversation.messages[-1]["content"], conversation.is_written) == (text, True)
        assert not to_conversation(layout, {**row, part: text}).is_written


@pytest.mark.parametrize(
    ("layout", "row", "expected"),
    [
        (PAIR, {"prompt": " \n", "completion": "c"}, "empty prompt"),
        (PAIR, {"prompt": "p", "completion": ""}, "empty completion"),
        (PAIR, {"prompt": None, "completion": "c"}, "null field"),
        (PAIR, {"prompt": "p"}, "missing field"),
        (PAIR, {"prompt": "p", "completion": {}}, "wrong type"),
        (PAIR, {"prompt": "p", "completion": float("nan")}, "null field"),
        (PAIR, {"prompt": "p", "completion": float("inf")}, "wrong type"),
        (PAIR, {"prompt": 7, "completion": "c"}, "wrong type"),
        (PAIR, {"prompt": ["p"], "completion": "c"}, "wrong type"),
        (PAIR, {"prompt": "p", "completion": "half \ud83d a pair"}, "broken unicode"),
        (LABEL, {"text": "t", "label": None}, "null field"),
        (LABEL, {"text": "t", "label": float("nan")}, "null field"),
        (LABEL, {"text": "t", "label": 0.5}, "wrong type"),
        (LABEL, {"text": "t", "label": ["a", "b"]}, "wrong type"),
        (LABEL, {"text": "t", "label": ""}, "empty completion"),
        (ALPACA, {"instruction": "i", "output": "o", "history": [["only user"]]}, "wrong type"),
        (ALPACA, {"instruction": "i", "output": "o", "history": [["u", ""]]}, "empty completion"),
    ],
)
def test_fault_of_a_flat_row(layout, row, expected):
    assert reason(row, layout) == expected


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([], "no assistant turn"),
        ([USER], "no assistant turn"),
        ([USER, ASSISTANT, USER], "ends with a user turn"),
        ([SYSTEM, ASSISTANT], "roles out of order"),
        ([USER, {"role": "narrator", "content": "x"}, ASSISTANT], "unsupported role"),
        ([USER, {"role": "assistant", "content": "x", "tool_calls": [{}]}], "wrong type"),
        ([USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}], "wrong type"),
        ([{**USER, "tool_calls": [{"name": "f"}]}, ASSISTANT], "unsupported field"),
        ([USER, {"role": "tool", "content": "x"}], "no assistant turn"),
        ([USER, {"role": "assistant", "content": "x", "weight": 0}], "no turn to learn"),
        ([USER, {"role": "assistant", "content": "x", "weight": 0.5}], "unsupported field"),
        ([USER, {"role": "assistant", "content": "x", "loss_scale": 2}], "unsupported field"),
        ([USER, {"role": "assistant", "content": "x", "train_detail": [{"begin_offset": 0}]}], "unsupported field"),
        ([{**USER, "train": True}, ASSISTANT], "unsupported field"),
        ([ASSISTANT, {**USER}, {**ASSISTANT, "train": False}], "no turn to learn"),
        ([ASSISTANT], "roles out of order"),
        ([USER, ASSISTANT, SYSTEM], "roles out of order"),
        ([USER, {"role": "assistant", "content": [{"type": "image_url", "image_url": {}}]}], "unsupported field"),
        ([USER, {"role": "assistant", "content": []}], "empty completion"),
        ([USER, {"role": "assistant", "content": None}], "null field"),
        ([USER, {"role": "assistant"}], "missing field"),
        ([USER, {"role": "assistant", "content": ""}], "empty completion"),
        ([{"role": "user", "content": ""}, ASSISTANT], "empty prompt"),
        (["hello", ASSISTANT], "wrong type"),
        ("hello", "wrong type"),
        (None, "null field"),
    ],
)
def test_fault_of_a_conversation(turns, expected):
    assert reason({"messages": turns}) == expected


WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
SERVED = {"type": "function", "function": {"name": "weather", "description": None, "parameters": WEATHER["parameters"]}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}


@pytest.mark.parametrize(
    ("tools", "calling"),
    [
        (  # in another order, and with a field that no server hands to a template
            {"tools": [{"function": {"parameters": WEATHER["parameters"], "returns": "x", "name": "weather"}}]},
            {"content": None, "tool_calls": [CALL]},
        ),
        ({"tools": [{"type": "function", "function": WEATHER}]}, {"content": None, "tool_calls": [CALL]}),
        ({"tools": json.dumps([WEATHER])}, {"tool_calls": [{"name": "weather", "arguments": '{"city": "Rome"}'}]}),
        (
            {"functions": [WEATHER]},
            {"content": "", "function_call": {"name": "weather", "arguments": {"city": "Rome"}}},
        ),
    ],
)
def test_tools_and_calls_have_one_form_whatever_the_file_has(tools, calling):
    turns = [USER, {"role": "assistant", **calling}, {"role": "tool", "content": "sunny", "name": "weather"}, ASSISTANT]
    conversation = to_conversation(Layout("messages", {"messages": "messages"}), {"messages": turns, **tools})
    assert conversation.messages == (
        {**USER, "tools": [SERVED]},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "sunny", "name": "weather"},
        ASSISTANT,
    )


def test_tools_of_llama_factory():
    calling = {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": {"city": "Rome"}})}
    observed = {"from": "observation", "value": "sunny"}
    turns = [{"from": "human", "value": "u"}, calling, observed, {"from": "gpt", "value": "a"}]
    row = {"conversations": turns, "tools": json.dumps([WEATHER])}
    first, second, third, _ = to_conversation(detect_layout([row]), row).messages
    assert first["tools"] == [SERVED]
    assert (second["tool_calls"], third) == ([CALL], {"role": "tool", "content": "sunny"})


@pytest.mark.parametrize(
    "thought",
    [
        {"content": "a", "reasoning_content": "hm"},
        {"content": "a", "thinking": "hm"},
        {"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}]},
    ],
)
def test_reasoning_has_one_form_whatever_the_file_has(thought):
    row = {"messages": [USER, {"role": "assistant", **thought}]}
    conversation = to_conversation(Layout("messages", {"messages": "messages"}), row)
    assert conversation.messages[1] == {**ASSISTANT, "reasoning_content": "hm"}
    assert conversation.reasoning_turns == 1


@pytest.mark.parametrize("column", ["video", "videos", "audios", "tools"])
def test_what_no_layout_can_use_is_refused_by_name(column):
    row = {"instruction": "i", "output": "o", column: ["x"]}
    with pytest.raises(RowFault, match=rf"unsupported field: {column}: .*; data.ignore: \[{column}\]"):
        to_conversation(detect_layout([row]), row)
    assert to_conversation(detect_layout([row]), {**row, column: []})


# turns that are not learnt, and turns in another order ---------------------------------------------------------------


def shown(turns, **columns):
    row = {"messages": turns, **columns}
    (conversation,) = to_conversations(detect_layout([row]), row)
    return [("context " if "weight" in m else "") + f"{m['role']}: {m['content']}" for m in conversation.messages]


@pytest.mark.parametrize(
    "mark", [{"weight": 0}, {"train": False}, {"training": False}, {"loss": False}, {"loss_scale": 0.0}]
)
def test_turns_that_a_tool_excludes_are_context(mark):
    learnt = {key: type(value)(1) for key, value in mark.items()}
    turns = [USER, {**ASSISTANT, **mark}, USER, {**ASSISTANT, **learnt}, USER, {**ASSISTANT, **mark}]
    assert shown(turns) == ["user: u", "context assistant: a", "user: u", "assistant: a"]
    values = [
        {"from": {"user": "human", "assistant": "gpt"}[t["role"]], "value": t["content"], **dict(list(t.items())[2:])}
        for t in turns
    ]
    row = {"conversations": values}
    (conversation,) = to_conversations(detect_layout([row]), row)
    assert [bool("weight" in m) for m in conversation.messages] == [False, True, False, False]
    assert conversation.context_answers == 1


def test_a_conversation_may_start_with_the_assistant_and_repeat_roles():
    turns = [SYSTEM, ASSISTANT, USER, USER, SYSTEM, ASSISTANT, ASSISTANT]
    assert shown(turns) == [
        *("system: s", "context assistant: a", "user: u", "user: u", "system: s", "assistant: a", "assistant: a"),
    ]


def test_content_may_be_a_list_of_text_parts():
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    assert shown([{"role": "user", "content": parts}, ASSISTANT]) == ["user: one two", "assistant: a"]
    assert shown([{"role": "user", "content": [{"text": "Bedrock"}]}, ASSISTANT])[0] == "user: Bedrock"


def test_system_beside_messages_is_the_first_turn():
    assert shown([USER, ASSISTANT], system="Be brief.") == ["system: Be brief.", "user: u", "assistant: a"]
    assert shown([USER, ASSISTANT], system=[{"type": "text", "text": "s"}]) == ["system: s", "user: u", "assistant: a"]
    assert shown([SYSTEM, USER, ASSISTANT], system="s") == ["system: s", "user: u", "assistant: a"]
    assert shown([USER, ASSISTANT], system=None) == ["user: u", "assistant: a"]


def test_turns_of_a_prompt_are_context_as_in_trl():
    row = {"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT]}
    (conversation,) = to_conversations(detect_layout([row]), row)
    assert [bool("weight" in m) for m in conversation.messages] == [False, True, False, False]


def test_developer_is_system():
    row = {"messages": [{"role": "developer", "content": "d"}, USER, ASSISTANT]}
    assert text_turns(Layout("messages", {"messages": "messages"}), row)[0] == ("system", "d")


def test_sharegpt_faults():
    layout = Layout("sharegpt", {"conversations": "conversations"})
    human, gpt = {"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}
    assert reason({"conversations": [human, {"from": "narrator", "value": "o"}, gpt]}, layout) == "unsupported role"
    assert reason({"conversations": [human, {"from": "function_call", "value": "o"}, gpt]}, layout) == "wrong type"
    assert reason({"conversations": [human, {"from": "gpt"}]}, layout) == "missing field"


def test_fault_says_what_stood_there():
    with pytest.raises(RowFault, match="wrong type: prompt is int 7, not text"):
        to_conversation(PAIR, {"prompt": 7, "completion": "c"})


def all_texts(row):
    return [
        [m["content"] for m in conversation.messages] for conversation in to_conversations(detect_layout([row]), row)
    ]


def test_row_with_several_answers_is_several_conversations():
    assert all_texts({"prompt": "p", "completion": ["a", "b"]}) == [["p", "a"], ["p", "b"]]
    nested = [{"input": "x", "output": "a"}, {"input": "", "output": "b"}]
    assert all_texts({"instruction": "i", "instances": nested}) == [["i\n\nx", "a"], ["i", "b"]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "completion": []}, "empty completion: completion"),
        ({"prompt": "p", "completion": ["a", " "]}, "empty completion: completion 2: completion"),
        ({"instruction": "i", "instances": []}, "empty completion: instances"),
        ({"instruction": "i", "instances": [{"input": "x"}]}, "missing field: output"),
        ({"instruction": "i", "instances": ["x"]}, "wrong type: an instance is str 'x', not an object"),
        ({"text": " "}, "empty text: text"),
    ],
)
def test_fault_of_one_answer_is_the_rows(row, message):
    layout = detect_layout([row])
    with pytest.raises(RowFault) as caught:
        to_conversations(layout, row)
    assert str(caught.value) == message


def test_developer_turns_are_counted():
    turns = [{"role": "developer", "content": "d"}, USER, ASSISTANT]
    (only,) = to_conversations(Layout("messages", {"messages": "messages"}), {"messages": turns})
    assert only.developer_turns == 1
    assert only.messages[0]["role"] == "system"
