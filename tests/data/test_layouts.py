import pytest

from mlflow_finetune_plugin.data.conversations import conversation
from mlflow_finetune_plugin.data.layouts import Layout, detect_layout
from mlflow_finetune_plugin.data.row_faults import RowFault
from mlflow_finetune_plugin.errors import DataError

USER, ASSISTANT, SYSTEM = ({"role": role, "content": role[0]} for role in ("user", "assistant", "system"))


def said(layout, row):
    return [(message["role"], message["content"]) for message in conversation(layout, row).messages]


def reason(row, layout=None):
    with pytest.raises(RowFault) as caught:
        conversation(layout or Layout("messages", {"messages": "messages"}), row)
    return caught.value.reason


# the guess -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "shown", "turns"),
    [
        (
            {"prompt": "p", "completion": "c"},
            "prompt_completion: prompt -> completion",
            [("user", "p"), ("assistant", "c")],
        ),
        (
            {"prompt": "p", "response": "r"},
            "prompt_completion: prompt -> response",
            [("user", "p"), ("assistant", "r")],
        ),
        (
            {"input": "0 47", "output": "47"},
            "prompt_completion: input -> output",
            [("user", "0 47"), ("assistant", "47")],
        ),
        (
            {"question": "q", "answer": "a"},
            "prompt_completion: question -> answer",
            [("user", "q"), ("assistant", "a")],
        ),
        (
            {"instruction": "i", "response": "r"},
            "prompt_completion: instruction -> response",
            [("user", "i"), ("assistant", "r")],
        ),
        (
            {"system": "s", "prompt": "p", "completion": "c"},
            "prompt_completion: system, prompt -> completion",
            [("system", "s"), ("user", "p"), ("assistant", "c")],
        ),
        (
            {"prompt": [SYSTEM, USER], "completion": [ASSISTANT]},
            "conversational: prompt -> completion",
            [("system", "s"), ("user", "u"), ("assistant", "a")],
        ),
        ({"messages": [USER, ASSISTANT]}, "messages: messages", [("user", "u"), ("assistant", "a")]),
        ({"conversations": [USER, ASSISTANT]}, "messages: conversations", [("user", "u"), ("assistant", "a")]),
        (
            {"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}], "system": "s"},
            "sharegpt: system, conversations",
            [("system", "s"), ("user", "h"), ("assistant", "g")],
        ),
        (
            {"instruction": "i", "input": "x", "output": "o"},
            "alpaca: instruction, input -> output",
            [("user", "i\n\nx"), ("assistant", "o")],
        ),
        ({"instruction": "i", "output": "o"}, "alpaca: instruction -> output", [("user", "i"), ("assistant", "o")]),
        (
            {"instruction": "i", "input": "", "output": "o", "system": "s", "history": [["a", "b"], ["c", "d"]]},
            "alpaca: system, history, instruction, input -> output",
            [
                *[("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
                *[("user", "i"), ("assistant", "o")],
            ],
        ),
        ({"text": "t", "category": "c"}, "label: text -> category", [("user", "t"), ("assistant", "c")]),
        ({"utterance": "t", "intent": "c", "id": 7}, "label: utterance -> intent", [("user", "t"), ("assistant", "c")]),
        ({"review": "t", "sentiment": 1}, "label: review -> sentiment", [("user", "t"), ("assistant", "1")]),
    ],
)
def test_layout_is_guessed_shown_and_used(row, shown, turns):
    layout = detect_layout([row])
    assert str(layout) == shown
    assert said(layout, row) == turns


def test_columns_of_later_rows_count_too():
    assert (
        str(detect_layout([{"instruction": "i", "output": "o"}, {"input": "x"}]))
        == "alpaca: instruction, input -> output"
    )


def test_columns_named_by_hand_decide_the_layout():
    row = {"q": "what", "a": "that", "text": "t", "label": "l"}
    assert detect_layout([row], {"prompt": "q", "completion": "a"}) == Layout(
        "prompt_completion", {"prompt": "q", "completion": "a"}
    )
    assert str(detect_layout([row], {"text": "q", "label": "a"})) == "label: q -> a"
    assert str(detect_layout([row], {"text": "q"})) == "label: q -> label"


def test_a_named_layout_settles_what_the_columns_leave_open():
    row = {"prompt": "p", "completion": "c", "text": "t", "label": True}
    assert str(detect_layout([row], layout="label")) == "label: text -> label"
    assert str(detect_layout([row], layout="prompt_completion")) == "prompt_completion: prompt -> completion"


@pytest.mark.parametrize(
    ("row", "options", "words"),
    [
        (
            {"foo": 1, "bar": 2},
            {},
            ["columns foo, bar", "data.columns: {prompt: ..., completion: ...}", "alpaca: instruction"],
        ),
        ({"text": "only text"}, {}, ["cannot tell the layout from the columns text", "data.layout"]),
        (
            {"text": "t", "label": 1, "label_text": "x"},
            {},
            ["2 ways: label: text -> label; or label: text -> label_text"],
        ),
        (
            {"prompt": "p", "completion": "c", "response": "r"},
            {},
            ["2 ways", "{prompt: prompt, completion: completion}"],
        ),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, {}, ["preference pairs"]),
        ({"my card is late": 1, "card": 2}, {}, ["is the first line of the file its header?"]),
        ({"a": 1}, {"layout": "alpacca"}, ["no layout 'alpacca'", "pick one of: auto, messages, sharegpt"]),
        ({"a": 1}, {"layout": "messages"}, ["messages: messages|conversations|conversation"]),
        ({"a": 1}, {"columns": {"promt": "a"}}, ["data.columns: no part 'promt'; did you mean 'prompt'?"]),
        ({"text": 1}, {"columns": {"text": "txt"}}, ["data.columns.text: no column 'txt'; did you mean 'text'?"]),
    ],
)
def test_what_cannot_be_guessed_names_columns_layouts_and_fix(row, options, words):
    with pytest.raises(DataError) as caught:
        detect_layout([row], **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


# one row -------------------------------------------------------------------------------------------------------------

PAIR = Layout("prompt_completion", {"prompt": "prompt", "completion": "completion"})
LABEL = Layout("label", {"text": "text", "label": "label"})
ALPACA = Layout("alpaca", {"history": "history", "instruction": "instruction", "output": "output"})


def test_texts_are_taken_verbatim():
    assert said(PAIR, {"prompt": " p\n", "completion": " c "}) == [("user", " p\n"), ("assistant", " c ")]


@pytest.mark.parametrize(
    ("label", "text"), [("x", "x"), (3, "3"), (0, "0"), (True, "true"), (False, "false"), (2.0, "2"), ("007", "007")]
)
def test_labels_become_text(label, text):
    assert said(LABEL, {"text": "t", "label": label})[1] == ("assistant", text)


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
    assert said(Layout("messages", {"messages": "messages"}), row)[0] == ("system", "d")


def test_sharegpt_faults():
    layout = Layout("sharegpt", {"conversations": "conversations"})
    human, gpt = {"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}
    assert reason({"conversations": [gpt, human, gpt]}, layout) == "roles out of order"
    assert reason({"conversations": [human, {"from": "observation", "value": "o"}, gpt]}, layout) == "unsupported role"
    assert reason({"conversations": [human, {"from": "gpt"}]}, layout) == "missing field"


def test_fault_says_what_stood_there():
    with pytest.raises(RowFault, match="wrong type: completion is int 7, not text"):
        conversation(PAIR, {"prompt": "p", "completion": 7})
