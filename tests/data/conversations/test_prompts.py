"""Rows of prompts with fields for a reward, in every layout that users bring, with the conversations written by hand."""

import datetime
import json

import pytest
from shown_turns import read, shown

from mlflow_finetune_plugin.data.conversations.interpretation import ColumnSettings, interpret
from mlflow_finetune_plugin.data.conversations.row_faults import RowFault
from mlflow_finetune_plugin.errors import DataError

SYSTEM = {"role": "system", "content": "Count."}
ASK = {"role": "user", "content": "2 + 2?"}
ANSWER = {"role": "assistant", "content": "4"}
AGAIN = {"role": "user", "content": "And 3 + 3?"}
ASKED = ["user: 2 + 2?"]


def prompts(row, **settings):
    (prompt,) = read("prompts", row, **settings)
    return shown(prompt.messages), json.loads(prompt.fields)


@pytest.mark.parametrize(
    ("row", "turns", "fields"),
    [
        # TRL
        ({"prompt": "2 + 2?"}, ASKED, {}),
        ({"prompt": [SYSTEM, ASK]}, ["system: Count.", *ASKED], {}),
        ({"prompt": [ASK], "ground_truth": "4"}, ASKED, {"ground_truth": "4"}),
        ({"prompt": "2 + 2?", "solution": "4", "level": 3}, ASKED, {"solution": "4", "level": 3}),
        ({"prompt": [ASK, ANSWER, AGAIN]}, [*ASKED, "(assistant): 4", "user: And 3 + 3?"], {}),
        # rows with an answer
        ({"prompt": "2 + 2?", "completion": "4"}, ASKED, {"completion": "4", "reference": "4"}),
        ({"prompt": [ASK], "completion": [ANSWER]}, ASKED, {"completion": [ANSWER], "reference": "4"}),
        (
            {"question": "2 + 2?", "answer": "It is\n#### 4"},
            ASKED,
            {"answer": "It is\n#### 4", "reference": "It is\n#### 4"},
        ),
        ({"problem": "2 + 2?", "solution": "4"}, ASKED, {"solution": "4", "reference": "4"}),
        ({"prompt": "2 + 2?", "answer": 4}, ASKED, {"answer": 4, "reference": "4"}),
        ({"prompt": "2 + 2?", "completion": None, "level": 1}, ASKED, {"completion": None, "level": 1}),
        (
            {"instruction": "Add.", "input": "2 and 2", "output": "4"},
            ["user: Add.\n\n2 and 2"],
            {"output": "4", "reference": "4"},
        ),
        ({"instruction": "2 + 2?", "input": "", "system": "Count."}, ["system: Count.", *ASKED], {}),
        ({"text": "2 + 2?", "label": "sum"}, ASKED, {"label": "sum", "reference": "sum"}),
        ({"text": "2 + 2?", "label": 1}, ASKED, {"label": 1, "reference": "1"}),
        ({"query": "2 + 2?", "intent": "sum"}, ASKED, {"intent": "sum", "reference": "sum"}),
        (
            {"query": "2 + 2?", "response": "4", "topic": "sum"},
            ASKED,
            {"response": "4", "topic": "sum", "reference": "4"},
        ),
        # conversations, and OpenAI's reinforcement fine-tuning
        ({"messages": [ASK]}, ASKED, {}),
        ({"messages": [SYSTEM, ASK], "answer": {"value": 4}}, ["system: Count.", *ASKED], {"answer": {"value": 4}}),
        ({"messages": [ASK, ANSWER]}, ASKED, {"reference": "4"}),
        (
            {"messages": [ASK, ANSWER, AGAIN, {**ANSWER, "content": "6"}], "level": 2},
            [*ASKED, "(assistant): 4", "user: And 3 + 3?"],
            {"level": 2, "reference": "6"},
        ),
        (
            {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
            ASKED,
            {"reference": "4"},
        ),
        # verl
        (
            {
                "data_source": "openai/gsm8k",
                "prompt": [ASK],
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": "4"},
                "extra_info": {"split": "train", "index": 0},
            },
            ASKED,
            {
                "data_source": "openai/gsm8k",
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": "4"},
                "extra_info": {"split": "train", "index": 0},
            },
        ),
        # pairs and ratings, for RLHF on the prompts of preferences
        (
            {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
            ASKED,
            {"chosen": "4", "rejected": "5", "reference": "4"},
        ),
        (
            {"chosen": "\n\nHuman: 2 + 2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2 + 2?\n\nAssistant: 5"},
            ASKED,
            {
                "chosen": "\n\nHuman: 2 + 2?\n\nAssistant: 4",
                "rejected": "\n\nHuman: 2 + 2?\n\nAssistant: 5",
                "reference": "4",
            },
        ),
        # a column of the row has the reference
        ({"prompt": "2 + 2?", "completion": "4", "reference": "four"}, ASKED, {"completion": "4", "reference": "four"}),
    ],
)
def test_prompt_of_every_layout(row, turns, fields):
    assert prompts(row) == (turns, fields)
    layout = interpret([row], ColumnSettings(form="prompts")).layout  # what a plan records reads the same
    assert prompts(row, layout=layout.name) == (turns, fields)
    assert prompts(row, layout=layout.name, columns=layout.columns) == (turns, fields)


def test_named_columns():
    row = {"ask": "2 + 2?", "say": "4", "grade": 0.5}
    assert prompts(row, columns={"prompt": "ask"}) == (ASKED, {"say": "4", "grade": 0.5})
    assert prompts(row, columns={"prompt": "ask", "completion": "say"}) == (
        ASKED,
        {"say": "4", "grade": 0.5, "reference": "4"},
    )
    assert prompts(row, columns={"prompt": "ask"}, ignore=("grade",)) == (ASKED, {"say": "4"})


@pytest.mark.parametrize(
    ("layout", "columns", "row", "reference"),
    [
        ("alpaca", {"instruction": "q", "output": "a"}, {"q": "2 + 2?", "a": "4"}, "4"),
        ("alpaca", {}, {"instruction": "2 + 2?", "output": "4"}, "4"),
        ("messages", {"messages": "talk"}, {"talk": [ASK, ANSWER]}, "4"),
        ("sharegpt", {"conversations": "talk"}, {"talk": [{"from": "human", "value": "2 + 2?"}]}, None),
        ("prompt_completion", {"prompt": "q", "completion": "a"}, {"q": "2 + 2?", "a": "4"}, "4"),
        ("label", {"text": "q", "label": "a"}, {"q": "2 + 2?", "a": "sum"}, "sum"),
        ("auto", {"text": "q", "label": "a"}, {"q": "2 + 2?", "a": "sum"}, "sum"),
    ],
)
def test_settings_for_rows_with_answers_read_their_prompts(layout, columns, row, reference):
    turns, fields = prompts(row, layout=layout, columns=columns)
    assert (turns, fields.get("reference")) == (ASKED, reference)


def test_a_composed_prompt_leaves_its_columns_to_the_reward():
    row = {"numbers": [2, 3], "target": 6}
    assert prompts(row, prompt_template="Make {{ target }} of {{ numbers | join(', ') }}.") == (
        ["user: Make 6 of 2, 3."],
        {"numbers": [2, 3], "target": 6},
    )


def test_fields_hold_what_json_can_hold():
    day = datetime.date(2026, 11, 24)
    row = {"prompt": "2 + 2?", "day": day, "share": float("nan"), "text": "vier – 四", "more": [float("inf"), 1]}
    (prompt,) = read("prompts", row)
    assert prompt.fields == '{"day": "2026-11-24", "share": null, "text": "vier – 四", "more": [null, 1]}'


def test_tools_are_a_part_of_the_prompt():
    tool = {"type": "function", "function": {"name": "look", "description": "", "parameters": {}}}
    (prompt,) = read("prompts", {"prompt": [ASK], "tools": [tool], "answer": "4"})
    assert prompt.messages == ({**ASK, "tools": [tool]},)
    assert json.loads(prompt.fields) == {"answer": "4", "reference": "4"}


def test_tools_of_openai_are_beside_the_messages():
    tool = {"type": "function", "function": {"name": "look", "description": "", "parameters": {}}}
    row = {"input": {"messages": [ASK], "tools": [tool]}, "preferred_output": [ANSWER], "non_preferred_output": [AGAIN]}
    (prompt,) = read("prompts", row)
    assert prompt.messages == ({**ASK, "tools": [tool]},)


def test_an_unused_column_is_the_rewards_and_stops_nothing():
    row = {"prompt": "2 + 2?", "passage": "A long text that looks like a part of the task.", "label": True}
    assert prompts(row) == (ASKED, {"passage": row["passage"], "label": True})
    reading = interpret([row], ColumnSettings(form="prompts"))
    reading.conversations(row)
    reading.check()
    assert not reading.unused.counts


ROW = {"prompt": "2 + 2?"}


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"prompt": ""}, "empty prompt: prompt"),
        ({"prompt": None}, "null field: prompt"),
        ({}, "missing field: prompt"),
        ({"prompt": []}, "empty prompt: prompt"),
        ({"prompt": [SYSTEM]}, "empty prompt: system"),
        ({"prompt": [ANSWER]}, "empty prompt: assistant"),
        ({"prompt": [ASK, ANSWER, ANSWER]}, "roles out of order: user assistant"),
        ({"prompt": [ASK, SYSTEM]}, "roles out of order: user system"),
        ({"prompt": "2 + 2?", "images": ["a.png"]}, "unsupported field: images"),
        ({"prompt": "2 + 2?", "note": "\ud800"}, "broken unicode"),
    ],
)
def test_rows_that_are_left_out(row, fault):
    reading = interpret([ROW], ColumnSettings(form="prompts"))
    with pytest.raises(RowFault) as caught:
        reading.conversations(row)
    assert str(caught.value).startswith(fault)


def test_a_file_without_prompts_is_refused():
    with pytest.raises(
        DataError, match=r"the columns text hold plain text: this objective learns from prompts.*-e lora takes"
    ):
        read("prompts", {"text": "A document."})
    with pytest.raises(
        DataError, match=r"the columns a, b do not hold prompts.*fix: name the columns, data\.columns: \{prompt: "
    ):
        read("prompts", {"a": "1", "b": "2"})
