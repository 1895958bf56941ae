"""Rows of pairs, in every layout that users bring, with the conversations written by hand."""

import json

import pytest
from shown_turns import read, shown

from mlflow_finetune_plugin.data.conversations.conversion import instructed
from mlflow_finetune_plugin.data.conversations.interpretation import ColumnSettings, interpret
from mlflow_finetune_plugin.data.conversations.row_faults import RowFault
from mlflow_finetune_plugin.data.conversations.turns.chat import is_learnt
from mlflow_finetune_plugin.errors import DataError

SYSTEM = {"role": "system", "content": "Be kind."}
ASK = {"role": "user", "content": "Sky?"}
GOOD = {"role": "assistant", "content": "Blue."}
BAD = {"role": "assistant", "content": "Green."}
AGAIN = {"role": "user", "content": "Sea?"}
HUMAN, GPT = {"from": "human", "value": "Sky?"}, {"from": "gpt", "value": "Blue."}
WORSE = {"from": "gpt", "value": "Green."}
PAIR = (["user: Sky?", "assistant: Blue."], ["user: Sky?", "assistant: Green."])
KIND_PAIR = tuple(["system: Be kind.", *side] for side in PAIR)
LATER_PAIR = tuple(
    ["user: Sky?", "(assistant): Blue.", "user: Sea?", f"assistant: {end}"] for end in ("Blue.", "Green.")
)


def pairs(*rows, **settings):
    return [(shown(pair.messages), shown(pair.rejected)) for pair in read("pairs", *rows, **settings)]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        # TRL, explicit prompt
        ({"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."}, PAIR),
        ({"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]}, PAIR),
        ({"prompt": [SYSTEM, ASK], "chosen": [GOOD], "rejected": [BAD]}, KIND_PAIR),
        ({"prompt": [ASK, GOOD, AGAIN], "chosen": [GOOD], "rejected": [BAD]}, LATER_PAIR),
        (
            {"prompt": [ASK], "chosen": [GOOD, AGAIN, GOOD], "rejected": [GOOD, AGAIN, BAD]},
            (
                ["user: Sky?", "assistant: Blue.", "user: Sea?", "assistant: Blue."],
                ["user: Sky?", "assistant: Blue.", "user: Sea?", "assistant: Green."],
            ),
        ),
        # TRL, implicit prompt
        ({"chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, PAIR),
        ({"chosen": [SYSTEM, ASK, GOOD], "rejected": [SYSTEM, ASK, BAD]}, KIND_PAIR),
        ({"chosen": [ASK, GOOD, AGAIN, GOOD], "rejected": [ASK, GOOD, AGAIN, BAD]}, LATER_PAIR),
        (
            {"chosen": "The sky is blue.", "rejected": "The sky is green."},
            (["user: The sky is", "assistant:  blue."], ["user: The sky is", "assistant:  green."]),
        ),
        # HH-RLHF
        ({"chosen": "\n\nHuman: Sky?\n\nAssistant: Blue.", "rejected": "\n\nHuman: Sky?\n\nAssistant: Green."}, PAIR),
        (
            {
                "chosen": "\n\nHuman: Sky?\n\nAssistant: Blue.\n\nHuman: Sea?\n\nAssistant: Blue.",
                "rejected": "\n\nHuman: Sky?\n\nAssistant: Blue.\n\nHuman: Sea?\n\nAssistant: Green.",
            },
            LATER_PAIR,
        ),
        (
            {
                "chosen": "\n\nHuman: Two\n\nparagraphs?\n\nAssistant: One.\n\nTwo.",
                "rejected": "\n\nHuman: Two\n\nparagraphs?\n\nAssistant: No",
            },
            (
                ["user: Two\n\nparagraphs?", "assistant: One.\n\nTwo."],
                ["user: Two\n\nparagraphs?", "assistant: No"],
            ),
        ),
        ({"prompt": "\n\nHuman: Sky?\n\nAssistant:", "chosen": "Blue.", "rejected": "Green."}, PAIR),
        # UltraFeedback: the prompt is repeated, and scores are not a part of the task
        (
            {
                "prompt": "Sky?",
                "prompt_id": "f0e37e9f",
                "chosen": [ASK, GOOD],
                "rejected": [ASK, BAD],
                "messages": [ASK, GOOD],
                "score_chosen": 6.0,
                "score_rejected": 4.0,
            },
            PAIR,
        ),
        ({"prompt": "Sky?", "chosen": [SYSTEM, ASK, GOOD], "rejected": [SYSTEM, ASK, BAD]}, KIND_PAIR),
        # LLaMA-Factory
        ({"conversations": [HUMAN], "chosen": GPT, "rejected": WORSE}, PAIR),
        ({"conversations": [HUMAN], "system": "Be kind.", "chosen": GPT, "rejected": WORSE}, KIND_PAIR),
        (
            {"instruction": "Say it.", "input": "In French.", "chosen": "Oui.", "rejected": "Yes."},
            (["user: Say it.\n\nIn French.", "assistant: Oui."], ["user: Say it.\n\nIn French.", "assistant: Yes."]),
        ),
        ({"instruction": "Sky?", "input": "", "chosen": "Blue.", "rejected": "Green."}, PAIR),
        ({"instruction": "Sky?", "input": "", "output": ["Blue.", "Green."]}, PAIR),
        (
            {"instruction": "Sea?", "history": [["Sky?", "Blue."]], "chosen": "Blue.", "rejected": "Green."},
            LATER_PAIR,
        ),
        # ms-swift
        ({"messages": [ASK, GOOD], "rejected_response": "Green."}, PAIR),
        ({"messages": [ASK, GOOD, AGAIN, GOOD], "rejected_response": "Green."}, LATER_PAIR),
        ({"messages": [ASK, GOOD], "rejected_messages": [ASK, BAD]}, PAIR),
        ({"query": "Sky?", "response": "Blue.", "rejected_response": "Green.", "history": []}, PAIR),
        # OpenAI, Azure, Together, Fireworks
        ({"input": {"messages": [ASK]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]}, PAIR),
        (
            {
                "input": {"messages": [SYSTEM, ASK], "tools": [], "parallel_tool_calls": True},
                "preferred_output": [GOOD],
                "non_preferred_output": [BAD],
            },
            KIND_PAIR,
        ),
        # Axolotl
        ({"system": "Be kind.", "question": "Sky?", "chosen": "Blue.", "rejected": "Green."}, KIND_PAIR),
        ({"system": "", "input": "Sky?", "chosen": "Blue.", "rejected": "Green."}, PAIR),
        ({"instruction": "Sky?", "chosen_response": "Blue.", "rejected_response": "Green."}, PAIR),
        ({"messages": [ASK], "chosen": GOOD, "rejected": BAD}, PAIR),
        # others
        ({"question": "Sky?", "response_j": "Blue.", "response_k": "Green."}, PAIR),
        ({"chosen_conversations": [ASK, GOOD], "rejected_conversations": [ASK, BAD]}, PAIR),
    ],
)
def test_pair_of_every_layout(row, expected):
    assert pairs(row) == [expected]
    layout = interpret([row], ColumnSettings(form="pairs")).layout  # what a plan records reads the same
    assert pairs(row, layout=layout.name) == [expected]
    assert pairs(row, layout=layout.name, columns=layout.columns) == [expected]


def test_turns_of_the_cells_of_a_csv_file():
    row = {"prompt": json.dumps([ASK]), "chosen": json.dumps([GOOD]), "rejected": json.dumps([BAD])}
    assert pairs(row) == [PAIR]
    listed = {"prompt": "Numbers?", "chosen": "[1, 2]", "rejected": '{"a": 1}'}
    assert pairs(listed) == [
        (["user: Numbers?", "assistant: [1, 2]"], ["user: Numbers?", 'assistant: {"a": 1}']),
    ]


def test_each_worse_answer_of_a_list_makes_a_pair():
    row = {"prompt": "Sky?", "chosen": "Blue.", "rejected": ["Green.", "Red."]}
    assert pairs(row) == [PAIR, (PAIR[0], ["user: Sky?", "assistant: Red."])]


def test_named_columns_and_composed_prompts():
    row = {"ask": "Sky?", "up": "Blue.", "down": "Green."}
    assert pairs(row, columns={"prompt": "ask", "chosen": "up", "rejected": "down"}) == [PAIR]
    row = {"where": "In Rome", "ask": "Sky?", "chosen": "Blue.", "rejected": "Green."}
    assert pairs(row, prompt_template="{{ where }}: {{ ask }}") == [
        (["user: In Rome: Sky?", "assistant: Blue."], ["user: In Rome: Sky?", "assistant: Green."])
    ]
    assert pairs({**row, "up": "Azure."}, columns={"chosen": "up"}, prompt_template="{{ ask }}", ignore=("where",)) == [
        (["user: Sky?", "assistant: Azure."], PAIR[1])
    ]


def test_one_named_side_is_enough():
    row = {"prompt": "Sky?", "chosen": "Azure.", "rejected": "Red.", "up": "Blue.", "down": "Green."}
    assert pairs(row, columns={"chosen": "up"}, ignore=("down",)) == [(PAIR[0], ["user: Sky?", "assistant: Red."])]
    assert pairs(row, columns={"rejected": "down"}, ignore=("up",)) == [(["user: Sky?", "assistant: Azure."], PAIR[1])]


@pytest.mark.parametrize("values", [{"ask": "Sky?"}, {"trajectory": [HUMAN]}])
def test_texts_beside_a_column_that_may_be_the_prompt_are_not_split(values):
    row = {**values, "chosen": "The sky is blue.", "rejected": "The sky is green.", "chosen_model": "m", "id": "a1"}
    (name,) = values
    with pytest.raises(
        DataError, match=f"which column holds the prompt is not clear .others: {name}.; fix: name it"
    ) as caught:
        read("pairs", row)
    assert f"-P data.columns.prompt={name}" in str(caught.value)
    assert pairs(row, columns={"prompt": name}) == [
        (["user: Sky?", "assistant: The sky is blue."], ["user: Sky?", "assistant: The sky is green."])
    ]
    assert pairs(row, ignore=(name,)) == [
        (["user: The sky is", "assistant:  blue."], ["user: The sky is", "assistant:  green."])
    ]


@pytest.mark.parametrize(("value", "margin"), [(1.5, 1.5), (2, 2.0), ("0.25", 0.25), (None, None), ("", None)])
def test_margin_is_a_number_where_the_row_has_one(value, margin):
    row = {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green.", "margin": value}
    other = {**row, "margin": 3.0}
    assert [pair.margin for pair in read("pairs", row, other)] == [margin, 3.0]
    named = {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green.", "gap": value}
    (pair, _) = read("pairs", named, {**named, "gap": 1}, columns={"margin": "gap"})
    assert pair.margin == margin


def test_only_the_answers_carry_loss_and_tools_are_at_the_first_turn():
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    served = {"type": "function", "function": {"name": "look", "description": None, "parameters": {}}}
    row = {
        "input": {"messages": [ASK, GOOD, AGAIN], "tools": [tool]},
        "preferred_output": [{"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}]}],
        "non_preferred_output": [BAD],
    }
    (pair,) = read("pairs", row)
    assert pair.messages[0] == pair.rejected[0] == {**ASK, "tools": [served]}
    assert [is_learnt(turn) for turn in pair.messages] == [False, False, False, True]
    assert pair.messages[-1]["tool_calls"] == [{"type": "function", "function": {"name": "look", "arguments": {}}}]
    (pair,) = read("pairs", {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD], "tools": [tool]})
    assert pair.messages[0] == pair.rejected[0] == {**ASK, "tools": [served]}


def test_an_instruction_is_before_both_sides():
    (pair,) = read("pairs", {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."})
    pair = instructed(pair, "Answer.")
    assert shown(pair.messages) == ["user: Answer.\n\nSky?", "assistant: Blue."]
    assert shown(pair.rejected) == ["user: Answer.\n\nSky?", "assistant: Green."]


GOOD_ROW = {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."}
DIALOGUES = {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]}


@pytest.mark.parametrize(
    ("file", "row", "fault"),
    [
        (GOOD_ROW, {**GOOD_ROW, "rejected": "Blue."}, "equal answers: chosen and rejected"),
        (GOOD_ROW, {**GOOD_ROW, "rejected": " Blue.\n"}, "equal answers"),
        (GOOD_ROW, {**GOOD_ROW, "rejected": ""}, "empty completion: rejected"),
        (GOOD_ROW, {**GOOD_ROW, "chosen": "  "}, "empty completion: chosen"),
        (GOOD_ROW, {**GOOD_ROW, "chosen": None}, "null field: chosen"),
        (GOOD_ROW, {"prompt": "Sky?", "chosen": "Blue."}, "missing field: rejected"),
        (GOOD_ROW, {**GOOD_ROW, "chosen": []}, "empty completion: chosen"),
        (GOOD_ROW, {**GOOD_ROW, "chosen": 7}, "wrong type: chosen is int 7, not text"),
        (GOOD_ROW, {**GOOD_ROW, "chosen": [7]}, "wrong type: a turn of chosen is int 7, not an object"),
        (GOOD_ROW, {**GOOD_ROW, "prompt": ""}, "empty prompt: prompt"),
        (GOOD_ROW, {**GOOD_ROW, "prompt": [SYSTEM]}, "empty prompt"),
        (GOOD_ROW, {**GOOD_ROW, "chosen": [AGAIN, GOOD], "rejected": [AGAIN, BAD]}, "prompts differ"),
        (GOOD_ROW, {**GOOD_ROW, "image": "a.png"}, "unsupported field: image"),
        (GOOD_ROW, {**GOOD_ROW, "weight": 0.5}, "unsupported field: weight"),
        (GOOD_ROW, {**GOOD_ROW, "chosen": [{**GOOD, "weight": 0}]}, "no turn to learn"),
        (DIALOGUES, {"chosen": [ASK, GOOD], "rejected": [AGAIN, BAD]}, "prompts differ: turn 1 of chosen"),
        (DIALOGUES, {"chosen": [ASK, GOOD], "rejected": [ASK, GOOD]}, "equal answers"),
        (DIALOGUES, {"chosen": [ASK, GOOD], "rejected": [ASK]}, "empty completion: rejected ends where"),
        (DIALOGUES, {"chosen": [ASK, GOOD, AGAIN, GOOD], "rejected": [ASK, GOOD]}, "empty completion: rejected ends"),
        (DIALOGUES, {"chosen": [GOOD], "rejected": [BAD]}, "empty prompt: chosen and rejected share no question"),
        (DIALOGUES, {"chosen": "Blue.", "rejected": "Red."}, "empty prompt: the beginning that chosen and rejected"),
        (DIALOGUES, {"chosen": "Blue.", "rejected": "Blue."}, "equal answers"),
        (
            {"instruction": "Sky?", "output": ["Blue.", "Green."]},
            {"instruction": "Sky?", "output": ["Blue.", "Blue."]},
            "equal answers: output",
        ),
        (
            {"instruction": "Sky?", "output": ["Blue.", "Green."]},
            {"instruction": "Sky?", "output": "Blue."},
            "wrong type: output is str 'Blue.', not a list of a better and a worse answer",
        ),
        (
            {**GOOD_ROW, "margin": 1.0},
            {**GOOD_ROW, "margin": "much"},
            "wrong type: margin is str 'much', not a number",
        ),
        ({**GOOD_ROW, "margin": 1.0}, {**GOOD_ROW, "margin": float("nan")}, "wrong type: margin"),
        (
            {"chosen": "\n\nHuman: Sky?\n\nAssistant: Blue.", "rejected": "\n\nHuman: Sky?\n\nAssistant: Green."},
            {"chosen": "\n\nHuman: Sky?\n\nAssistant: Blue.", "rejected": "\n\nHuman: Sky?\n\nAssistant: "},
            "empty completion: rejected",
        ),
    ],
)
def test_rows_that_are_left_out(file, row, fault):
    reading = interpret([file], ColumnSettings(form="pairs"))
    with pytest.raises(RowFault) as caught:
        reading.conversations(row)
    assert str(caught.value).startswith(fault)


def test_a_part_of_the_task_stops_the_run_and_a_description_of_the_answers_does_not():
    described = {
        "generations": ["Blue.", "The sky is green."],
        "rationale": "The first answer is right, as everyone can see.",
        "chosen_model": "a large model",
        "rejected-rating": "a low rating by the judge",
        "labelling_prompt": [{"content": "Which answer to Sky? is better, please?", "role": "user"}],
    }
    assert pairs({**GOOD_ROW, **described}) == [PAIR]
    with pytest.raises(DataError, match=r"'passage' is not used.*data\.ignore: \[passage\]"):
        read("pairs", {**GOOD_ROW, "passage": "It is a clear day in Rome."})
