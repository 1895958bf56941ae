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
    ("layout", "row", "expected"),
    [
        (PAIR, {"prompt": " \n", "completion": "c"}, "empty prompt"),
        (PAIR, {"prompt": "p", "completion": ""}, "empty completion"),
        (PAIR, {"prompt": None, "completion": "c"}, "null field"),
        (PAIR, {"prompt": "p"}, "missing field"),
        (PAIR, {"prompt": "p", "completion": 7}, "wrong type"),
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
        ([USER, USER, ASSISTANT], "roles out of order"),
        ([USER, ASSISTANT, ASSISTANT], "roles out of order"),
        ([ASSISTANT, USER, ASSISTANT], "roles out of order"),
        ([SYSTEM, ASSISTANT], "roles out of order"),
        ([USER, SYSTEM, ASSISTANT], "roles out of order"),
        ([USER, {"role": "tool", "content": "x"}, ASSISTANT], "unsupported role"),
        ([USER, {"role": "assistant", "content": "x", "tool_calls": [{}]}], "unsupported role"),
        ([USER, {"role": "assistant", "content": "x", "weight": 0}], "unsupported field"),
        ([USER, {"role": "assistant", "content": "x", "reasoning_content": "hm"}], "unsupported field"),
        ([USER, {"role": "assistant", "content": None}], "null field"),
        ([USER, {"role": "assistant"}], "missing field"),
        ([USER, {"role": "assistant", "content": ""}], "empty completion"),
        ([{"role": "user", "content": ""}, ASSISTANT], "empty prompt"),
        ([USER, {"role": "assistant", "content": [{"type": "text", "text": "x"}]}], "wrong type"),
        (["hello", ASSISTANT], "wrong type"),
        ("hello", "wrong type"),
        (None, "null field"),
    ],
)
def test_fault_of_a_conversation(turns, expected):
    assert reason({"messages": turns}) == expected


def test_conversation_made_with_tools_is_refused():
    assert reason({"messages": [USER, ASSISTANT], "tools": [{"name": "f"}]}) == "unsupported field"


def test_developer_is_system():
    row = {"messages": [{"role": "developer", "content": "d"}, USER, ASSISTANT]}
    assert text_turns(Layout("messages", {"messages": "messages"}), row)[0] == ("system", "d")


def test_sharegpt_faults():
    layout = Layout("sharegpt", {"conversations": "conversations"})
    human, gpt = {"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}
    assert reason({"conversations": [gpt, human, gpt]}, layout) == "roles out of order"
    assert reason({"conversations": [human, {"from": "observation", "value": "o"}, gpt]}, layout) == "unsupported role"
    assert reason({"conversations": [human, {"from": "gpt"}]}, layout) == "missing field"


def test_fault_says_what_stood_there():
    with pytest.raises(RowFault, match="wrong type: completion is int 7, not text"):
        to_conversation(PAIR, {"prompt": "p", "completion": 7})


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
